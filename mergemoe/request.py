"""What `compress` is asked to do: its arguments, checked before anything is computed."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from mergemoe import budget, fits, stock
from mergemoe.errors import UserError
from mergemoe.families import auto_class
from mergemoe.fits import CHOOSES_ROUTING, GROUPINGS


def chosen(
    described: Mapping[str, Any], layers: str | Sequence[int], experts: int | float, width: float
) -> dict[int, int]:
    """Return {layer: M} of the layers that lose experts, or neurons of each."""
    counts = {entry["layer"]: entry["experts"] for entry in described["layers"]}
    if isinstance(layers, str):
        first, last = budget.layer_bounds(layers)
        wanted = {layer for layer in counts if first <= layer <= last}
        if not wanted:
            raise UserError(f"layers {layers} hold no experts; those that do: {', '.join(map(str, counts))}")
    else:
        wanted = {int(layer) for layer in layers}
    if missing := set(wanted) - set(counts):
        raise UserError(f"layers {sorted(missing)} hold no experts; those that do: {', '.join(map(str, counts))}")
    kept = {layer: budget.kept_experts(experts, counts[layer]) for layer in sorted(wanted)}
    return {layer: m for layer, m in kept.items() if m < counts[layer] or width < 1}


def stock_config(
    model: Any, described: Mapping[str, Any], kept: Mapping[int, int], method: str, width: float = 1.0, **options: Any
) -> dict[str, Any] | None:
    """Return the configuration of the stock model that comes of it; None where it becomes a compact one.

    Raises:
        UserError: where the routing is to change, and this model's cannot.
    """
    entries = {entry["layer"]: entry for entry in described["layers"] if entry["layer"] in kept}
    routing = fits.routing(method, options)
    rerouted = routing != "preserved"
    for layer, entry in entries.items() if rerouted else ():
        groups, top_groups = entry["router"]["groups"], entry["router"]["top_groups"]
        budget.check_router(described["model_type"], routing, kept[layer], entry["top_k"], groups, top_groups)
    sizes = {layer: (kept[layer], budget.kept_width(width, entry["width"])) for layer, entry in entries.items()}
    settings = {**model.config.to_dict(), "dtype": described["dtype"]}
    return stock.config_of(settings, described, sizes, dict.fromkeys(sizes, rerouted)) if sizes else None


def stock_class(model: Any) -> str:
    """Return the name of a model's class, one that transformers loads by an auto class."""
    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise UserError(f"{name} is no class of transformers' own: a compressed model could not be loaded again as one")
    auto_class(name)
    return name


def check_method(method: str, **options: Any) -> None:
    """Check that there is a method of this name, and that it has these options.

    Raises:
        UserError: with what there is.
    """
    if method not in GROUPINGS:
        raise UserError(f"no method {method!r}; there are: {', '.join(GROUPINGS)}")
    takes = list(inspect.signature(importlib.import_module(f"mergemoe.methods.{method}").merge).parameters)[1:]
    takes += ["routing"] if method in CHOOSES_ROUTING else []
    if unknown := sorted(set(options) - set(takes)):
        raise UserError(f"method {method} has no option {', '.join(unknown)}; it has: {', '.join(takes) or 'none'}")


def ids_and_mask(tokens: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, [S, L] each."""
    given = tokens if isinstance(tokens, Mapping) else {"input_ids": tokens}
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise UserError(
            "`tokens` must be token ids [sequences, length], or what a tokenizer returns with "
            f'return_tensors="pt", padding=True; got {getattr(ids, "shape", type(ids).__name__)}'
        )
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape or not mask.any():
        raise UserError(f"attention_mask {list(mask.shape)} does not fit ids {list(ids.shape)}, or masks every token")
    return ids, mask
