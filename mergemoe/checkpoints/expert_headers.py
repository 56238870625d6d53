"""Find the routed experts of a checkpoint from its headers and config.json, for any architecture.

This module imports neither torch nor transformers, because every job parses the Snakefile, which uses it.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mergemoe.checkpoints import model_folder, quantization
from mergemoe.checkpoints.config_keys import config_values, needed_size
from mergemoe.checkpoints.model_folder import read_config, read_headers
from mergemoe.errors import UserError

Headers = Mapping[str, Mapping[str, Any]]

# After the layer's number comes either a component `experts` (never `shared_experts`), with or without an expert's
# number, or the names under which granitemoe, jetmoe and step3p7 stack a layer's experts.
_KEY = re.compile(
    r"(?P<stack>.+?)\.(?P<layer>\d+)\."
    r"(?:(?:.*\.)?experts\.(?:(?:expert_)?(?P<expert>\d+)\.)?"
    r"|(?:block_sparse_moe|mlp)\.(?=(?:in|out)put_linear\.)"
    r"|moe\.(?=(?:gate|up|down)_proj\.))"
    r"(?P<name>.+)"
)
_FLAT = re.compile(r"mlp\.(w1|v1|w2)")  # dbrx stores the experts one after the other, [E * I, H]
_DOWN = re.compile(r"(?:mlp\.)?(down_proj|down_projs|w2|wo|fc2|output_linear)([._]weight)?")


class RoutedTensor(NamedTuple):
    """A stored tensor of routed experts.

    stack: the part of the key before the layer's number, such as `model.layers`.
    layer: the layer's number; in an encoder-decoder, the decoder's layers follow the encoder's.
    experts: the number of experts in the layer.
    form: `alone` holds one expert; `stacked` holds all as [E, ...]; `flat` holds all one after the other, [E * I, H];
        `identity` is what longcat_flash stores for experts that return their input, and is never read.
    name: the part of the key after the experts.
    """

    stack: str
    layer: int
    experts: int
    form: Literal["alone", "stacked", "flat", "identity"]
    name: str


def routed_tensors(headers: Headers, config: Mapping[str, Any]) -> dict[str, RoutedTensor]:
    """Return {key: the tensor's place} for all tensors of routed experts, mergeable or not."""
    matches = {key: match for key in headers if (match := _KEY.fullmatch(key))}
    working = needed_size(config, "experts") if config_values(config, "identity_experts") else math.inf
    members: dict[tuple[str, int], set[int]] = defaultdict(set)
    for match in matches.values():
        if match["expert"] and int(match["expert"]) < working:
            members[match["stack"], int(match["layer"])].add(int(match["expert"]))
    encoder = needed_size(config, "layers") if config.get("is_encoder_decoder") else 0
    found = {}
    for key, match in matches.items():
        stack, number, name, shape = match["stack"], int(match["layer"]), match["name"], headers[key]["shape"]
        layer = number + (encoder if stack.endswith("decoder.block") else 0)
        if match["expert"]:
            form = "alone" if int(match["expert"]) in members[stack, number] else "identity"
            found[key] = RoutedTensor(stack, layer, len(members[stack, number]), form, name)
        elif _FLAT.fullmatch(name) and shape:
            found[key] = RoutedTensor(stack, layer, shape[0] // _flat_width(config, key), "flat", name)
        elif len(shape) > 1:  # otherwise it is a map, a norm, or a bias of the router
            found[key] = RoutedTensor(stack, layer, shape[0], "stacked", name)
    return found


def _flat_width(config: Mapping[str, Any], key: str) -> int:
    compressed = (config.get("mergemoe") or {"experts": {}})["experts"]
    if facts := compressed.get(key.rpartition(".mlp.")[0]):
        return facts["width"][1]
    return needed_size(config, "flat_width")


def mergeable_tensors(headers: Headers, config: Mapping[str, Any]) -> dict[str, RoutedTensor]:
    """Return the tensors of experts that can be merged.

    Mixtures of attention heads (jetmoe) and layers that predict further tokens are left out.
    """
    own = {
        key: held
        for key, held in routed_tensors(headers, config).items()
        if held.form != "identity" and "attention." not in key and "mtp" not in held.stack
    }
    predicting = _predicting(own, config)
    return {key: held for key, held in own.items() if not key.startswith(predicting)}


def predicting_layers(headers: Headers, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the beginnings of the keys of layers that predict further tokens and are stored after the model's own.

    Nothing of the model depends on them: they may have another number of experts, or another dtype.
    """
    own = {key: held for key, held in routed_tensors(headers, config).items() if "mtp" not in held.stack}
    return _predicting(own, config)


def _predicting(found: Mapping[str, RoutedTensor], config: Mapping[str, Any]) -> tuple[str, ...]:
    layers = config_values(config, "layers")
    if config.get("is_encoder_decoder") or not layers:
        return ()
    numbers = range(min(layers), max(layers) + max(config_values(config, "predicting_layers"), default=0))
    return tuple(f"{stack}.{number}." for stack in {held.stack for held in found.values()} for number in numbers)


def expert_sizes(headers: Headers, config: Mapping[str, Any]) -> dict[int, dict[str, int]]:
    """Return {layer: {experts: their number, width: I, parameters, bytes: of all experts}} of every MoE layer."""
    layers: dict[int, dict[str, int]] = {}
    # config.json may not say that there are layers which predict further tokens.
    said = [] if config.get("is_encoder_decoder") else config_values(config, "layers")
    for key, held in sorted(mergeable_tensors(headers, config).items(), key=lambda item: item[1].layer):
        if held.layer >= min(said, default=math.inf):
            continue
        shape = headers[key]["shape"]
        layer = layers.setdefault(held.layer, {"experts": held.experts, "width": 0, "parameters": 0, "bytes": 0})
        layer["parameters"] += math.prod(shape)
        layer["bytes"] += headers[key]["bytes"]
        if _DOWN.fullmatch(held.name):
            hidden = shape[0] if held.form == "alone" else needed_size(config, "hidden_size") * held.experts
            layer["width"] = math.prod(shape) // hidden
    return layers


def matrix_roles(headers: Headers, config: Mapping[str, Any]) -> list[str]:
    """Return the roles of the experts' matrices: with a gate, the others hold twice as many numbers as down."""
    sizes = {True: 0, False: 0}
    for key, held in mergeable_tensors(headers, config).items():
        if "bias" not in held.name:
            sizes[bool(_DOWN.fullmatch(held.name))] += math.prod(headers[key]["shape"])
    return ["gate", "up", "down"] if sizes[False] > 1.5 * sizes[True] else ["up", "down"]


def count_experts(folder: str | Path) -> dict[int, int]:
    """Return {layer: number of routed experts} of every MoE layer.

    Raises:
        UserError: no layer has experts.
    """
    config = read_config(folder)
    counts = {layer: size["experts"] for layer, size in expert_sizes(read_headers(folder), config).items()}
    if not counts:
        raise UserError(
            f"{folder} ({config.get('model_type')}): no layer has experts. A dense model has nothing to merge. Set "
            "`model.<name>.path` to a Mixture-of-Experts checkpoint"
        )
    return counts


def read_plain_headers(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the headers of a checkpoint; for a quantized one, those of its plain copy."""
    return quantization.dequantized_headers(model_folder.read_headers(path))


def read_expert_sizes(path: str | Path) -> dict[int, dict[str, int]]:
    """Return the expert sizes of a checkpoint folder; for a quantized one, those of its plain copy."""
    return expert_sizes(read_plain_headers(path), model_folder.read_config(path))
