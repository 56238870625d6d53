"""What `compress` is asked to do: its arguments, checked before anything is computed."""

import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
import transformers
from torch import Tensor

from mergemoe.checkpoints import router_headers
from mergemoe.compressed import stock
from mergemoe.errors import UserError
from mergemoe.merging.feature_rules import Features
from mergemoe.methods import catalogue
from mergemoe.methods.catalogue import CHOOSES_ROUTING, GROUPINGS, ROUTINGS
from mergemoe.models.families import auto_class
from mergemoe.moe import layer_sizes

VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": (lambda value: _number(value) and 0 < value <= 1, "a share of the neurons, above 0 and at most 1"),
    "ridge": (lambda value: value == "auto" or _number(value) and value >= 0, "auto, or a number of 0 or more"),
    "memory": (lambda value: _number(value) and value > 0, "gigabytes, above 0"),
    "features": (lambda value: value in get_args(Features), f"one of {', '.join(get_args(Features))}"),
    "routing": (lambda value: value in ROUTINGS, f"one of {', '.join(ROUTINGS)}"),
}


def chosen(
    described: Mapping[str, Any],
    layers: str | Sequence[int],
    experts: int | float | None,
    method: str,
    width: float = 1.0,
    **_: Any,
) -> dict[int, int]:
    """Return {layer: M} of the layers that lose experts, or neurons of each.

    Args:
        described: the model's layout.
        layers: as compress has them.
        experts: M, or a share of N; None is a half, and all where the method keeps all.
        method: one that there is.
        width: a share of the neurons.

    Raises:
        UserError: where there is no such layer, or number of experts.
    """
    counts = {entry["layer"]: entry["experts"] for entry in described["layers"]}
    if not isinstance(layers, str | Iterable):
        raise UserError(f'`layers` is "all", a range such as "2-3", or a list of layers; got {layers!r}')
    keeps_all = GROUPINGS[method] == ("none",)
    experts = (1.0 if keeps_all else 0.5) if experts is None else experts
    if isinstance(layers, str):
        first, last = layer_sizes.layer_bounds(layers)
        wanted = {layer for layer in counts if first <= layer <= last}
        if not wanted:
            raise UserError(f"layers {layers} hold no experts; those that do: {', '.join(map(str, counts))}")
    else:
        wanted = {int(layer) for layer in layers}
    if missing := set(wanted) - set(counts):
        raise UserError(f"layers {sorted(missing)} hold no experts; those that do: {', '.join(map(str, counts))}")
    if not wanted:
        raise UserError("`layers` is empty: name a layer, or leave it out")
    kept = {layer: layer_sizes.kept_experts(experts, counts[layer]) for layer in sorted(wanted)}
    if keeps_all and any(m < counts[layer] for layer, m in kept.items()):
        raise UserError(f"method {method} keeps all experts and narrows them: leave out `experts`, and give `width`")
    return {layer: m for layer, m in kept.items() if m < counts[layer] or width < 1}


def stock_config(
    model: Any, described: Mapping[str, Any], kept: Mapping[int, int], method: str, width: float = 1.0, **options: Any
) -> dict[str, Any] | None:
    """Return the configuration of the stock model that comes of it; None where it becomes a compact one.

    Raises:
        UserError: where the routing is to change, and this model's cannot.
    """
    entries = {entry["layer"]: entry for entry in described["layers"] if entry["layer"] in kept}
    routing = catalogue.routing(method, options)
    rerouted = routing != "preserved"
    for layer, entry in entries.items() if rerouted else ():
        groups, top_groups = entry["router"]["groups"], entry["router"]["top_groups"]
        router_headers.check_router(described["model_type"], routing, kept[layer], entry["top_k"], groups, top_groups)
    sizes = {layer: (kept[layer], layer_sizes.kept_width(width, entry["width"])) for layer, entry in entries.items()}
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
    """Check that there is a method of this name, that it has these options, and that they have values.

    Raises:
        UserError: with what there is.
    """
    if method not in GROUPINGS:
        raise UserError(f"no method {method!r}; there are: {', '.join(GROUPINGS)}")
    parameters = inspect.signature(importlib.import_module(f"mergemoe.methods.{method}").merge).parameters
    takes = [*list(parameters)[1:], *(["routing"] if method in CHOOSES_ROUTING else [])]
    if unknown := sorted(set(options) - set(takes)):
        raise UserError(f"method {method} has no option {', '.join(unknown)}; it has: {', '.join(takes) or 'none'}")
    for name in takes:
        if name not in options:
            if name in parameters and parameters[name].default is inspect.Parameter.empty:
                raise UserError(f"method {method} needs `{name}`: {VALUES[name][1]}")
            continue
        fits_type = name not in parameters or parameters[name].annotation is not float or _number(options[name])
        if not (fits_type and VALUES[name][0](options[name])):
            raise UserError(f"method {method}, `{name}`: got {options[name]!r}; it is {VALUES[name][1]}")
    if "features" in takes and options.get("width", 1) < 1 and options.get("features", "usage") != "selected":
        raise UserError(f'method {method}: `width` below 1 needs features="selected"; the others are averages')


def check_heldout(method: str, heldout: Tensor, ridge: float | str | None = None, **_: Any) -> None:
    """Check that a method that chooses its ridge by held-out sequences has some; heldout [S]."""
    parameters = inspect.signature(importlib.import_module(f"mergemoe.methods.{method}").merge).parameters
    default = parameters["ridge"].default if "ridge" in parameters else None
    if (default if ridge is None else ridge) == "auto" and not heldout.any():
        raise UserError(
            f"method {method} chooses its ridge by held-out sequences, and there are none: give `holdout` a share "
            "above 0, or `ridge` a number such as 0.01"
        )


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


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
