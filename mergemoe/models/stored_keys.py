"""How stored tensors come into a model: parameter, part and operations."""

from collections.abc import Iterable
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

STACKED = {("MergeModulelist",), ("MergeModulelist", "Concatenate")}  # operations: a tensor per expert and matrix


class Source(NamedTuple):
    """How a stored tensor comes into a model: parameter, which of the parts joined in it, and by which operations."""

    parameter: str
    part: int
    operations: tuple[str, ...]


def stored_keys(model: PreTrainedModel, headers: Iterable[str]) -> dict[str, Source]:
    """Return where each stored key goes."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    joins = {
        pattern: (i, tuple(type(operation).__name__ for operation in converter.operations))
        for converter in converters
        for i, pattern in enumerate(converter.source_patterns)
    }
    own = model.state_dict()
    renamed = {key: rename_source_key(key, renamings, converters, model.base_model_prefix, own) for key in headers}
    return {key: Source(name, *(joins[pattern] if pattern else (0, ()))) for key, (name, pattern) in renamed.items()}


def split_names(model: PreTrainedModel, source: Source) -> list[str]:
    """Return all parameters that one stored tensor is cut into; `source.parameter` is the first."""
    names = [source.parameter]
    for transform in get_model_conversion_mapping(model) if "Chunk" in source.operations else ():
        first, *others = transform.target_patterns
        names += [source.parameter.replace(first, other) for other in others if first in source.parameter]
    return names
