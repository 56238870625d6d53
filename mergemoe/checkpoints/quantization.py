"""Check quantized checkpoints and describe their tensors after dequantization, from JSON alone.

This module does not import torch, so that a checkpoint is refused when the Snakefile is parsed.
"""

from collections.abc import Mapping
from typing import Any

from mergemoe.errors import UserError

# The methods that transformers dequantizes while loading, on any device and without another package.
METHODS = ("fp8", "mxfp8", "mxfp4")

Headers = Mapping[str, Mapping[str, Any]]


def quantization_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `quantization_config` of a config.json or of its text model; None if nothing is quantized."""
    own = config.get("quantization_config")
    return (config.get("text_config") or {}).get("quantization_config") if own is None else own


def unquantized_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without `quantization_config` and dtype, its text model included."""
    after = {key: value for key, value in config.items() if key not in {"quantization_config", "dtype", "torch_dtype"}}
    if isinstance(after.get("text_config"), Mapping):
        after["text_config"] = unquantized_config(after["text_config"])
    return after


def check_quantization(config: Mapping[str, Any], dequantize: bool) -> None:
    """Check that a choice of `model` says `dequantize: true` exactly if its checkpoint is quantized.

    Raises:
        UserError: it does not, or transformers cannot dequantize the method.
    """
    found = quantization_settings(config)
    if found is None and dequantize:
        raise UserError("`dequantize: true` is set, but config.json has no quantization_config. Remove the key")
    if found is None:
        return
    if not found:
        raise UserError("config.json has an empty quantization_config, which transformers refuses. Delete the key")
    method = found.get("quant_method", "an unnamed method") if isinstance(found, Mapping) else found
    if method not in METHODS or not isinstance(found, Mapping):
        raise UserError(
            f"the checkpoint is quantized by {method}. Without another package, transformers dequantizes only "
            f"{', '.join(METHODS)}. Use the checkpoint that it was made from, or make a plain copy with that method's "
            "own package (docs/models.md)"
        )
    if not dequantize:
        raise UserError(
            f"the checkpoint is quantized ({method}). Quantized weights cannot be merged. Set `dequantize: true` "
            "beside `path`: the run then first writes a plain copy to results/convert/ (16 bits per weight) and "
            "compresses that"
        )


def dequantized_headers(headers: Headers) -> dict[str, dict[str, Any]]:
    """Return the headers of a checkpoint after dequantization to 16 bits; plain tensors keep their entries.

    fp8: `weight` and its scales become `weight`. mxfp4: `<p>_blocks` [E, R, G, 16], in which 16 bytes hold 32 numbers,
    and `<p>_scales` [E, R, G] become `<p>` [E, 32 G, R].
    """
    after = {}
    for key, entry in headers.items():
        name = key.removesuffix("_blocks")
        if key.endswith(("_scale_inv", ".activation_scale")) or f"{key.removesuffix('_scales')}_blocks" in headers:
            continue
        if name != key and f"{name}_scales" in headers:
            if len(entry["shape"]) != 4:
                raise UserError(
                    f"{key} has the shape {entry['shape']}; mxfp4 stores four dimensions [experts, rows, groups, 16]. "
                    "The quantization_config of config.json belongs to other weights"
                )
            experts, rows, groups, half = entry["shape"]
            shape = [experts, 2 * half * groups, rows]
            after[name] = {**entry, "dtype": "BF16", "shape": shape, "bytes": 4 * entry["bytes"]}
        elif entry["dtype"].startswith("F8_"):
            after[key] = {**entry, "dtype": "BF16", "bytes": 2 * entry["bytes"]}
        else:
            after[key] = dict(entry)
    return after
