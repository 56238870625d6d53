"""Where the experts of a checkpoint lie and how they compute: all that later stages know of an architecture.

`describe` is the one place that asks transformers; what it returns is plain JSON. With it, weights.py reads
the experts and features.py computes them with safetensors and torch alone.
"""

import re
from pathlib import Path
from typing import Any

from mergemoe import checkpoint, store
from mergemoe.errors import UserError
from mergemoe.progress import track
from mergemoe.stream import decoder_layers, empty_model, experts_modules, stored_keys

# What the fused parameter of an experts module is made of, in the order transformers joins it.
_ROLES = {"gate_up_proj": ("gate", "up"), "up_proj": ("up",), "down_proj": ("down",)}
# Families whose router takes the top-k of a softmax over all experts; of others only the class is told.
_SOFTMAX = {"qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "flex_olmo", "mixtral"}

Stored = dict[str, list[tuple[str, int]]]  # parameter -> [(stored key, which part of the parameter it is)]


def describe(folder: str | Path, digests: bool = True) -> dict[str, Any]:
    """Return the layout of a checkpoint.

    Per MoE layer: `module`, `experts` N, `width` I, `top_k` K, `activation`, `router`, and per role (gate, up,
    down) the stored `keys`, one per expert, and the `shape` of one expert's matrix.

    `files` holds the sha256 of every file of the checkpoint, unless `digests` is off.

    Raises:
        UserError: where this version cannot read the experts, with the reason.
    """
    folder = Path(folder)
    headers = checkpoint.read_headers(folder)
    counted = checkpoint.count_experts(folder)
    config = checkpoint.read_config(folder)
    if "quantization_config" in config:
        raise UserError(f"{folder} is quantized ({config['quantization_config'].get('quant_method')}): not supported")
    model = empty_model(folder)
    _, layers, prefix = decoder_layers(model)
    stored: Stored = {}
    for key, (parameter, part) in stored_keys(model, headers).items():
        stored.setdefault(parameter, []).append((key, part))
    found = {
        int(name[len(prefix) :].split(".")[0]): (name, module)
        for name, module in experts_modules(model).items()
        if name.startswith(prefix)
    }
    configured = {layer: module.num_experts for layer, (_, module) in sorted(found.items())}
    if configured != counted:
        raise UserError(f"{folder}: experts per layer are {counted} in the files, {configured} by its config.json")
    text = model.config.get_text_config()
    return {
        "path": str(folder),
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "dtype": str(model.config.dtype).removeprefix("torch."),
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "decoder_layers": len(layers),
        "files": _digests(folder) if digests else {},
        "layers": [
            _layer(layer, name, module, stored, headers, model) for layer, (name, module) in sorted(found.items())
        ],
    }


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.name: store.sha256(path) for path in track(checkpoint.files(folder), "sha256 of the checkpoint's files")
    }


def _layer(layer: int, name: str, module: Any, stored: Stored, headers: dict[str, Any], model: Any) -> dict[str, Any]:
    _refuse_unsupported(name, module)
    roles: dict[str, dict[str, Any]] = {}
    for parameter, parts in _ROLES.items():
        for i, role in enumerate(parts if f"{name}.{parameter}" in stored else ()):
            keys = [key for key, part in stored[f"{name}.{parameter}"] if part == i]
            keys.sort(key=lambda key: [int(number) for number in re.findall(r"\d+", key)])
            if len(keys) != module.num_experts:
                raise UserError(
                    f"{name}: {len(keys)} stored keys hold the {role} projections of {module.num_experts} experts; "
                    "experts stored as one tensor are not supported yet"
                )
            roles[role] = {"keys": keys, "shape": headers[keys[0]]["shape"], "dtype": headers[keys[0]]["dtype"]}
    text = model.config.get_text_config()
    block = name.rpartition(".")[0]
    router_name = next(n for n in ("gate", "router") if hasattr(model.get_submodule(block), n))
    router = model.get_submodule(f"{block}.{router_name}")
    return {
        "layer": layer,
        "module": name,
        "experts": module.num_experts,
        "width": roles["down"]["shape"][1],
        "top_k": text.num_experts_per_tok,
        "activation": {"name": text.hidden_act, "gated": module.has_gate, "limit": None},
        "router": {
            "module": f"{block}.{router_name}",
            "class": type(router).__name__,
            "rule": "softmax" if model.config.model_type in _SOFTMAX else None,
            "normalized": bool(getattr(text, "norm_topk_prob", True)),
            "bias": hasattr(router, "e_score_correction_bias"),
            "groups": getattr(text, "n_group", 1) or 1,
            "scaling": float(getattr(text, "routed_scaling_factor", 1.0)),
        },
        "roles": roles,
    }


def _refuse_unsupported(name: str, module: Any) -> None:
    traits = {
        "biases": module.has_bias,
        "transposed weights": module.is_transposed,
        "interleaved gate and up": not module.is_concatenated,
        "a norm after each expert": module.has_post_expert_norm,
        "a gate computed in its own way": type(module)._apply_gate.__name__ != "_default_apply_gate",
    }
    if found := [trait for trait, present in traits.items() if present]:
        raise UserError(f"{name} ({type(module).__name__}) has {', '.join(found)}: not supported yet")
