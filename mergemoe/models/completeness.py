"""Check that the files hold every tensor of a model, in the shapes that config.json gives. Only headers are read.

transformers fills missing tensors with random numbers and prints a warning. Here a missing tensor is an error.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError
from mergemoe.models.stored_keys import STACKED, Source, split_names, stored_keys

_MEANS = (
    "Shards are missing, or config.json and the weights belong to different checkpoints. Download the whole checkpoint "
    "again"
)


def check_completeness(model: Any, headers: Mapping[str, Any], folder: str | Path) -> None:
    """Check every parameter of a model against the stored tensors.

    Args:
        model: the model, its parameters on any device.
        headers: the headers of the folder, from model_folder.read_headers.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: a parameter is in no file, or the stored tensors do not have its shape.
    """
    sources: dict[str, list[tuple[str, Source]]] = {}
    for key, source in stored_keys(model, headers).items():
        for name in split_names(model, source):
            sources.setdefault(name, []).append((key, source))
    parameters = dict(model.named_parameters())
    if missing := [name for name in parameters if name not in sources and not _excused(model, name)]:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(parameters)} tensors that the model needs are missing, such as "
            f"{missing[0]}. {_MEANS}. If only the head is missing, config.json may lack `tie_word_embeddings: true`"
        )
    for name, parameter in parameters.items():
        _check_shape(name, list(parameter.shape), sources.get(name, []), headers, folder)


def _excused(model: Any, name: str) -> bool:
    """Return whether a parameter need not be stored: it is tied to another one, or its class computes it."""
    tied = model.all_tied_weights_keys
    ignored = model._keys_to_ignore_on_load_missing or ()
    return name in tied or any(re.search(pattern, name) for pattern in ignored)


def _check_shape(
    name: str, shape: list[int], found: list[tuple[str, Source]], headers: Mapping[str, Any], folder: str | Path
) -> None:
    stored = [(key, headers[key]["shape"]) for key, _ in found]
    operations = {source.operations for _, source in found}
    if operations == {()} and len(stored) == 1 and stored[0][1] != shape:
        key, other = stored[0]
        raise UserError(f"{folder}: {key} has the shape {other}, but config.json gives {shape}. {_MEANS}")
    if operations and operations <= STACKED:
        of_part: dict[int, list[int]] = {}
        for (key, source), (_, other) in zip(found, stored, strict=True):
            if (expected := of_part.setdefault(source.part, other)) != other:
                raise UserError(f"{folder}: {key} has the shape {other}, but others like it have {expected}. {_MEANS}")
        numbers = sum(math.prod(other) for _, other in stored)
        if numbers != math.prod(shape):
            raise UserError(f"{folder}: {numbers:,} numbers are stored for {name}, whose shape is {shape}. {_MEANS}")
