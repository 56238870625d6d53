"""Check that the files hold every tensor of a model, in the shapes that config.json gives. Only headers are read.

transformers fills missing tensors with random numbers and prints a warning. Here a missing tensor is an error.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints.expert_headers import predicting_layers
from mergemoe.checkpoints.model_folder import read_config
from mergemoe.errors import UserError
from mergemoe.models.stored_keys import STACKED, Source, split_names, stored_keys

_TEXT = "language_model."
LOOKED_AT = 100  # missing parameters; those of one stack of experts have no stored name of their own

_MEANS = (
    "Shards are missing, or config.json and the weights belong to different checkpoints. Download the whole checkpoint "
    "again"
)


def check_stored(model: Any, headers: Mapping[str, Any], folder: str | Path) -> None:
    """Check that the stored tensors are those of a model: none is missing, none too many, each of its shape.

    Args:
        model: the model, its parameters on any device.
        headers: the headers of the folder, from model_folder.read_headers.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: they are not; the message gives a tensor.
    """
    sources = _sources(model, headers)
    check_order(model, headers, folder)
    parameters = dict(model.named_parameters())
    if missing := [name for name in parameters if name not in sources and not _excused(model, name)]:
        for tied, source in model.all_tied_weights_keys.items():
            if source in missing and tied in sources:
                raise UserError(
                    f"{folder} stores {sources[tied][0][0]} and no {source}, to which config.json ties it. Give the "
                    f"tensor the name {source}"
                )
        raise UserError(
            f"{folder}: {len(missing)} of the {len(parameters)} tensors that the model needs are missing, such as "
            f"{missing[0]}. {_MEANS}. If only the head is missing, config.json may lack `tie_word_embeddings: true`"
        )
    for name, parameter in parameters.items():
        _check_shape(name, list(parameter.shape), sources.get(name, []), headers, folder)
    _check_unread(model, headers, folder)


def check_prefix(model: Any, headers: Iterable[str], folder: str | Path) -> None:
    """Check that the stored names are not the model's own names behind one prefix.

    Args:
        model: the model, its parameters on any device.
        headers: the stored keys.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: they are; the message gives the prefix.
    """
    stored, sources = sorted(headers), _sources(model, headers)
    missing = (name for name, _ in model.named_parameters() if name not in sources and not _excused(model, name))
    for name in itertools.islice(missing, LOOKED_AT):
        if f"{_TEXT}{name}".replace(f"{_TEXT}model.", f"model.{_TEXT}") in headers:
            raise UserError(
                f"{folder} stores tensors of the text part of a larger model ({_TEXT!r} in their names), but its "
                f"config.json describes the text part alone. Take {_TEXT!r} out of all names, or use the config.json "
                "of the whole model"
            )
        if key := next((key for key in stored if key.endswith(f".{name}")), None):
            raise UserError(
                f"{folder} stores {key}, where the model that config.json describes has {name}. A program saved it "
                f"inside another model. Take {key.removesuffix(name)!r} out of all names, or use the config.json of "
                "that model"
            )


def _check_unread(model: Any, headers: Mapping[str, Any], folder: str | Path) -> None:
    own = {*model.state_dict(), *(name for name, _ in model.named_buffers())}
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    refuse_unread(
        [
            key
            for key, source in stored_keys(model, headers).items()
            if source.parameter not in own
            and not any(re.search(pattern, name) for pattern in ignored for name in (key, source.parameter))
        ],
        headers,
        folder,
    )


def refuse_unread(keys: Iterable[str], headers: Mapping[str, Any], folder: str | Path) -> None:
    """Raise the error for stored tensors that a model does not read, those of predicting layers left out.

    Args:
        keys: of the tensors.
        headers: the headers of the folder.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: one is left.
    """
    predicting = predicting_layers(headers, read_config(folder))
    if unread := sorted(key for key in keys if not key.startswith(predicting)):
        raise UserError(
            f"{folder} has {len(unread)} tensors that the model of its config.json does not read, such as {unread[0]}. "
            "Without them it would be another model. config.json belongs to another checkpoint, or was edited"
        )


def check_order(model: Any, headers: Iterable[str], folder: str | Path) -> None:
    """Check that no tensor is stored twice, and the names of tensors that are stacked into one.

    transformers takes what fits a pattern, in sorted order.

    Args:
        model: the model, its parameters on any device.
        headers: the stored keys.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: if a tensor is there twice, or the names of a stack are not one name with numbers in turn.
    """
    stacks: dict[tuple[str, int], list[str]] = {}
    plain: dict[str, str] = {}
    for key, source in stored_keys(model, headers).items():
        if source.operations[:1] == ("MergeModulelist",):
            stacks.setdefault((source.parameter, source.part), []).append(key)
        if not source.operations and (other := plain.setdefault(source.parameter, key)) != key:
            raise UserError(
                f"{folder} stores both {other} and {key} for {source.parameter}, and transformers would take one of "
                "them. Two checkpoints are in the folder, or a conversion wrote a tensor twice. Delete one"
            )
    for (name, _), keys in stacks.items():
        pieces = [re.split(r"(\d+)", key) for key in keys]
        usual = Counter(tuple(parts[::2]) for parts in pieces).most_common(1)[0][0]
        if odd := [key for key, parts in zip(keys, pieces, strict=True) if tuple(parts[::2]) != usual]:
            raise UserError(f"{folder}: {odd[0]} stands among the tensors of {name}, and is named otherwise. {_MEANS}")
        places = [set(map(int, place)) for place in zip(*(parts[1::2] for parts in pieces), strict=True)]
        varying = [place for place in places if len(place) > 1]
        if len(keys) > 1 and not (len(varying) == 1 and max(varying[0]) - min(varying[0]) + 1 == len(keys)):
            raise UserError(f"{folder}: the tensors of {name}, such as {keys[0]}, are not numbered in turn. {_MEANS}")


def _sources(model: Any, headers: Iterable[str]) -> dict[str, list[tuple[str, Source]]]:
    """Return {parameter: the stored keys that it is made from, and their places in it}."""
    found: dict[str, list[tuple[str, Source]]] = {}
    for key, source in stored_keys(model, headers).items():
        for name in split_names(model, source):
            found.setdefault(name, []).append((key, source))
    return found


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
