"""Map stored keys to a model's parameters, with transformers' own conversion rules."""

from collections.abc import Iterable
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

# The operations if the file has one tensor per expert and matrix.
STACKED = {("MergeModulelist",), ("MergeModulelist", "Concatenate")}


class Source(NamedTuple):
    """The place of a stored tensor in a model.

    parameter: the name of the parameter; if the tensor is split, the first of its parameters.
    part: the tensor's number among those that are joined in the parameter.
    operations: the names of transformers' conversion operations.
    """

    parameter: str
    part: int
    operations: tuple[str, ...]


def stored_keys(model: PreTrainedModel, headers: Iterable[str]) -> dict[str, Source]:
    """Return {stored key: its place in the model}."""
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
    """Return the names of all parameters that one stored tensor is split into; `source.parameter` is the first."""
    names = [source.parameter]
    for transform in get_model_conversion_mapping(model) if "Chunk" in source.operations else ():
        first, *others = transform.target_patterns
        names += [source.parameter.replace(first, other) for other in others if first in source.parameter]
    return names
