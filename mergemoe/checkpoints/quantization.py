"""Which quantized checkpoints can be used, and what their tensors are once dequantized: asked of JSON alone.

Nothing here imports torch, so that the Snakefile can refuse a checkpoint when it is parsed.
"""

from collections.abc import Mapping
from typing import Any

from mergemoe.errors import UserError

# Those that transformers turns back while it loads, on any device and without another package.
METHODS = ("fp8", "mxfp8", "mxfp4")

Headers = Mapping[str, Mapping[str, Any]]


def quantization_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `quantization_config` of a config.json, or its text model's; None where nothing is quantized."""
    return config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")


def unquantized_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without its `quantization_config` and its text model's, and without a dtype."""
    after = {key: value for key, value in config.items() if key not in {"quantization_config", "dtype", "torch_dtype"}}
    if isinstance(after.get("text_config"), Mapping):
        after["text_config"] = unquantized_config(after["text_config"])
    return after


def check_quantization(config: Mapping[str, Any], dequantize: bool) -> None:
    """Check that a checkpoint can be used as a choice of `model` says.

    Raises:
        UserError: where it is quantized and the choice does not say `dequantize: true`, or says it in vain.
    """
    found = quantization_settings(config)
    if found is None and dequantize:
        raise UserError("`dequantize: true`, but its config.json has no quantization_config: leave the key out")
    if found is None:
        return
    method = found.get("quant_method", "an unnamed method") if isinstance(found, Mapping) else found
    if method not in METHODS:
        raise UserError(
            f"quantized by {method}; transformers dequantizes {', '.join(METHODS)} without another package, and not "
            "this. Name the checkpoint that it was made from, or make a plain one with that method's own package "
            "(docs/models.md says how)"
        )
    if not dequantize:
        raise UserError(
            f"quantized ({method}). With `dequantize: true` beside `path` the run begins with a plain copy in "
            "results/convert/ (16 bits a weight), and compresses that"
        )


def dequantized_headers(headers: Headers) -> dict[str, dict[str, Any]]:
    """Return the headers that a checkpoint has once it is dequantized to 16 bits; others are given back as they are.

    fp8: `weight` and its scales become `weight`. mxfp4: `<p>_blocks` [E, R, G, 16], 32 numbers each, and `<p>_scales`
    [E, R, G] become `<p>` [E, 32 G, R].
    """
    after = {}
    for key, entry in headers.items():
        name = key.removesuffix("_blocks")
        if key.endswith(("_scale_inv", ".activation_scale")) or f"{key.removesuffix('_scales')}_blocks" in headers:
            continue
        if name != key and f"{name}_scales" in headers:
            experts, rows, groups, half = entry["shape"]
            shape = [experts, 2 * half * groups, rows]
            after[name] = {**entry, "dtype": "BF16", "shape": shape, "bytes": 4 * entry["bytes"]}
        elif entry["dtype"].startswith("F8_"):
            after[key] = {**entry, "dtype": "BF16", "bytes": 2 * entry["bytes"]}
        else:
            after[key] = dict(entry)
    return after
