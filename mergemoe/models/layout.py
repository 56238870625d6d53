"""Describe where the experts of a checkpoint are stored and how they compute. Later stages use only this layout.

`describe_layout` uses transformers and returns plain JSON. From it, checkpoints/expert_weights.py reads the experts and
moe/expert_forward.py computes them with safetensors and torch alone.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers.core_model_loading import revert_weight_conversion

from mergemoe.artifacts import digests
from mergemoe.checkpoints import model_folder
from mergemoe.errors import UserError, naming
from mergemoe.models import completeness, router_layout
from mergemoe.models.activation_rule import activation_of
from mergemoe.models.families import Family, experts_modules, model_top_k, nested_attribute, stacked_parameter
from mergemoe.models.layered_model import empty_model
from mergemoe.models.stacks import layer_stacks
from mergemoe.models.stored_keys import Source, stored_keys
from mergemoe.moe.layout_types import HeldRole, LayerLayout, Layout, ModelLayout, RoleLayout, StoredRole
from mergemoe.moe.packing import Stacking
from mergemoe.progress import track

Stored = dict[str, list[tuple[str, Source]]]  # parameter -> [(stored key, its place in the parameter)]


_AGAIN = "config.json and the weights may belong to different checkpoints. Download the whole checkpoint again"


def describe_layout(path: str | Path, revision: str | None = None, digests: bool = True) -> Layout:
    """Return the layout of a checkpoint.

    Each MoE layer has `module`, `experts` N, `width` I, `top_k` K, `activation` and `router`. Each of its roles (gate,
    up, down and their biases) has the stored `keys`, the `shape` of all N experts, and their packing both in the stored
    tensors and in the module's `parameter` (moe/packing.py).

    Args:
        path: a folder; with `revision`, the id of a hub model that `mergemoe fetch` has downloaded.
        revision: a full commit hash.
        digests: whether to write the sha256 of every file of the checkpoint into `files`.

    Raises:
        UserError: this version cannot read the experts; the message gives the reason.
    """
    folder = model_folder.locate_checkpoint(path, revision)
    with naming(folder):
        model, headers = empty_model(folder), model_folder.read_headers(folder)
    completeness.check_prefix(model, headers, folder)
    with naming(folder):
        described = layout_of_model(model, headers)
    completeness.check_stored(model, headers, folder)
    found: Layout = {"path": str(path), **described, "files": _digests(folder) if digests else {}}
    if revision:
        found["revision"] = revision
    return found


def layout_of_model(model: Any, headers: Mapping[str, Any] | None = None) -> ModelLayout:
    """Return the layout of a model, its parameters on any device; without headers, the layout has no stored keys."""
    every = layer_stacks(model)
    stored: Stored = {}
    for key, source in stored_keys(model, headers or {}).items():
        stored.setdefault(source.parameter, []).append((key, source))
    found = {
        stack.first + int(name[len(stack.prefix) :].split(".")[0]): (name, module, family)
        for name, (module, family) in experts_modules(model).items()
        for stack in every
        if name.startswith(stack.prefix)
    }
    if not found:
        raise UserError(
            f"{type(model).__name__} has no experts that this version can read. They are not feed-forward experts, or "
            "their class is not one of transformers' own. docs/models.md lists the models that work"
        )
    text = model.config.get_text_config()
    return {
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.config.dtype).removeprefix("torch."),
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "decoder_layers": sum(len(stack.layers) for stack in every),
        "layers": [_layer(layer, *found[layer], stored, headers, model) for layer in sorted(found)],
    }


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): digests.sha256_once(path)
        for path in track(model_folder.checkpoint_files(folder), "sha256 of the checkpoint's files")
    }


def _layer(
    layer: int, name: str, module: Any, family: Family, stored: Stored, headers: Mapping[str, Any] | None, model: Any
) -> LayerLayout:
    count = nested_attribute(module, family.experts)
    held = {role: _held(module, path, how, count) for role, (path, how) in family.roles.items()}
    roles = {role: _role(f"{name}.{facts['parameter']}", role, facts, stored, headers) for role, facts in held.items()}
    identity = nested_attribute(module, family.identity) if family.identity else 0
    norm = f"{name}.post_expert_norm"
    normed = getattr(module, "has_post_expert_norm", False)

    def key_of(parameter: str) -> str:
        found = stored.get(parameter, [])  # the file may have another prefix than the model
        return found[0][0] if len(found) == 1 else _stored_name(model, parameter)

    return {
        "layer": layer,
        "module": name,
        "experts": count,
        "identity": identity,
        "width": roles["down"]["shape"][2],
        "hidden_size": roles["down"]["shape"][1],
        "top_k": model_top_k(model.config, family),
        "activation": activation_of(name, module, family).facts(),
        "norm": {"key": key_of(f"{norm}.weight")} if normed else None,
        "router": router_layout.describe_router(model, name, family, key_of),
        "roles": roles,
        "expert_map": {"key": _stored_name(model, f"{name}.{family.expert_map}"), "buffer": family.expert_map},
    }


def _held(module: Any, parameter: str, how: Stacking, count: int) -> HeldRole:
    """Return the place of one role in the module: the shape of its N experts, and the number of unused rows."""
    whole = stacked_parameter(module, parameter, count)
    spare = 0 if how.flat else len(whole) - count
    shape = list(how.view(whole[: len(whole) - spare], count).shape)
    return {"parameter": parameter, "held": how.facts(), "shape": shape, "spare": spare}


def _role(parameter: str, role: str, facts: HeldRole, stored: Stored, headers: Mapping[str, Any] | None) -> RoleLayout:
    if headers is None:
        return cast(RoleLayout, facts)
    return {**facts, **_stored(parameter, role, facts, stored, headers)}


def _stored(parameter: str, role: str, facts: HeldRole, stored: Stored, headers: Mapping[str, Any]) -> StoredRole:
    """Return the place of one role in the files: its keys, and its packing in their tensors."""
    held, shape = Stacking(**facts["held"]), facts["shape"]
    alone = "{}" in parameter
    names = [parameter.format(expert) for expert in range(shape[0])] if alone else [parameter]
    found = [pair for name in names for pair in stored.get(name, [])]
    operations = {op for _, source in found for op in source.operations}
    fused = not alone and "MergeModulelist" not in operations
    known = {"Concatenate", "Transpose", "Interleave"} if fused else {"Concatenate", "MergeModulelist"}
    if unknown := operations - known:
        raise UserError(
            f"{parameter} is built from stored tensors by {', '.join(sorted(unknown))}, which this version does not "
            "support (docs/models.md)"
        )
    joined = len({source.part for _, source in found}) > 1
    keys = [key for key, source in found if not joined or source.part == held.part]
    keys.sort(key=lambda key: [int(number) for number in re.findall(r"\d+", key)])
    count = 1 if fused else shape[0]
    if len(keys) < count:
        raise UserError(
            f"{parameter}: there are {len(keys)} stored keys for the {role} projections of {shape[0]} experts. {_AGAIN}"
        )
    how = held if fused and not joined else Stacking()
    if "Interleave" in operations:
        how = replace(how, interleaved=not how.interleaved)
    # Some checkpoints of such a family are stored transposed, some are not: the shape tells.
    if "Transpose" in operations and headers[keys[0]]["shape"] != how.shape(shape):
        how = replace(how, transposed=not how.transposed)
    expected = how.shape(shape) if fused else shape[1:]
    if headers[keys[0]]["shape"] != expected:
        raise UserError(
            f"{keys[0]} has the shape {headers[keys[0]]['shape']}, but config.json gives {expected}. {_AGAIN}"
        )
    return {
        "keys": keys[:count],
        "identity": [] if fused else keys[count:],
        "fused": fused,
        "dtype": headers[keys[0]]["dtype"],
        "stored": how.facts(),
    }


def _stored_name(model: Any, name: str) -> str:
    """Return the key under which transformers saves a tensor of the model."""
    ((key, _),) = revert_weight_conversion(model, {name: torch.empty(0)}).items()
    return key
