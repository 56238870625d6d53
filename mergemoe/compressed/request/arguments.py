"""Check the arguments of `mergemoe.compress` before anything is computed."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import transformers

from mergemoe.checkpoints import router_headers
from mergemoe.compressed import stock
from mergemoe.errors import UserError, one_line, shown
from mergemoe.methods import catalogue
from mergemoe.methods.catalogue import METHODS
from mergemoe.methods.options import Option
from mergemoe.models.families import auto_class
from mergemoe.moe import layer_sizes
from mergemoe.moe.layout_types import ModelLayout

RECOMMENDED = "select"


def kept_by_layer(
    described: ModelLayout,
    layers: str | Sequence[int],
    experts: int | float | None,
    method: str,
    options: Mapping[str, Any],
    all_layers: bool = False,
) -> dict[int, int]:
    """Return {layer: M} of the layers that lose experts, or neurons of each; or of all that `layers` names.

    Args:
        described: the model's layout.
        layers: as compress has them.
        experts: M, or a share of N; None is a half, and all if the method keeps all.
        method: a method of the table.
        options: all of the method.
        all_layers: whether those count that lose nothing, too.

    Raises:
        UserError: if there is no such layer, or number of experts.
    """
    counts = {entry["layer"]: entry["experts"] for entry in described["layers"]}
    keeps_all = METHODS[method].groupings == ("none",)
    experts = (1.0 if keeps_all else 0.5) if experts is None else experts
    if isinstance(layers, str):
        first, last = layer_sizes.layer_bounds(layers)
        wanted = {layer for layer in counts if first <= layer <= last}
        if not wanted:
            raise UserError(f"layers {layers} have no experts; those that do: {', '.join(map(str, counts))}")
    else:
        wanted = _layer_numbers(layers)
    if missing := set(wanted) - set(counts):
        raise UserError(
            f"layers {shown(sorted(missing))} have no experts; those that do: {', '.join(map(str, counts))}"
        )
    if not wanted:
        raise UserError("`layers` is empty. Name a layer, or leave it out")
    kept = {layer: layer_sizes.kept_experts(experts, counts[layer]) for layer in sorted(wanted)}
    if keeps_all and any(m < counts[layer] for layer, m in kept.items()):
        raise UserError(f"method {method} keeps all experts and narrows them. Leave out `experts`, and give `width`")
    whole = {entry["layer"]: entry["width"] for entry in described["layers"]}
    narrowed = {layer for layer in kept if catalogue.kept_width(options, whole[layer]) < whole[layer]}
    return {layer: m for layer, m in kept.items() if all_layers or m < counts[layer] or layer in narrowed}


def _layer_numbers(layers: object) -> set[int]:
    try:
        listed = list(cast("Iterable[object]", layers))
    except TypeError:  # also a tensor without dimensions, which calls itself iterable
        raise UserError(
            f'`layers` must be "all", a range such as "2-3", or a list of layers; got {shown(layers)}'
        ) from None
    if not all(isinstance(layer, numbers.Integral) and not isinstance(layer, bool) for layer in listed):
        raise UserError(f"`layers` must name layers by whole numbers; got {shown(listed)}")
    return {int(cast("int", layer)) for layer in listed}


def stock_config(
    model: Any, described: ModelLayout, kept: Mapping[int, int], options: Mapping[str, Any], routing: str
) -> dict[str, Any] | None:
    """Return the configuration of the compressed model if stock code loads it; None if it needs the compact format.

    Raises:
        UserError: if the routing changes and this model's router cannot.
    """
    entries = {entry["layer"]: entry for entry in described["layers"] if entry["layer"] in kept}
    rerouted = routing != "preserved"
    for layer, entry in entries.items() if rerouted else ():
        groups, top_groups = entry["router"]["groups"], entry["router"]["top_groups"]
        router_headers.check_router(described["model_type"], routing, kept[layer], entry["top_k"], groups, top_groups)
    sizes = {layer: (kept[layer], catalogue.kept_width(options, entry["width"])) for layer, entry in entries.items()}
    settings = {**model.config.to_dict(), "dtype": described["dtype"]}
    return stock.choose_config(settings, described, sizes, dict.fromkeys(sizes, rerouted)) if sizes else None


def stock_class(model: Any) -> str:
    """Return the name of a model's class.

    Raises:
        UserError: if no auto class of transformers loads it.
    """
    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise UserError(f"{name} is not a class of transformers, so a compressed model could not be loaded again")
    auto_class(name)
    return name


def method_name(method: object) -> str:
    """Return the method that is meant: `recommended` is the one that RECOMMENDED names.

    Raises:
        UserError: if there is no such method, with those that there are.
    """
    name = RECOMMENDED if isinstance(method, str) and method == "recommended" else method
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"no method {shown(method)}; there are: {', '.join(METHODS)}")
    return name


def method_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method, those that are given checked against the table of methods.

    Raises:
        UserError: if there is no such option or value, with those that there are.
    """
    table = dict(METHODS[method].options)
    if "width" in table:
        table["width"] = replace(table["width"], words=())  # auto is the width of a `share`, which only params.yaml has
    complete = checked(f"method {method}", table, given)
    if why := catalogue.conflict(complete):
        raise UserError(f"method {method}: {why}")
    return complete


def checked(owner: str, table: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a table: those that are given, and the defaults of the others.

    Raises:
        UserError: if there is no such option or value, with those that there are.
    """
    if unknown := sorted(map(str, given.keys() - table.keys())):
        raise UserError(
            f"{owner} has no option {one_line(', '.join(unknown), 200)}; it has: {', '.join(table) or 'none'}"
        )
    for name, option in table.items():
        if name not in given and option.default is None:
            raise UserError(f"{owner} needs `{name}` ({option.text}): {option.allowed}")
        if name in given and not option.allows(given[name]):
            raise UserError(f"{owner}, `{name}`: got {shown(given[name])}; it must be {option.allowed}")
    return {name: given.get(name, option.default) for name, option in table.items()}


def grouping_options(
    described: ModelLayout,
    kept: Mapping[int, int],
    method: str,
    options: Mapping[str, Any],
    by: object,
    max_size: object,
    search: object,
) -> dict[str, Any]:
    """Return how experts are grouped, checked against the method and the layers: `by`, `max_size` and `search`.

    Raises:
        UserError: if there is no such grouping or option, or the method does not fit it.
    """
    routing, width = catalogue.routing(method, options), options.get("width", 1.0)
    by = catalogue.usual_grouping(method, routing) if by is None else by
    fitting = METHODS[method].groupings
    if not isinstance(by, str) or by not in fitting:
        raise UserError(f"`by`: got {shown(by)}; method {method} needs groups by {', '.join(fitting)}")
    if why := catalogue.misfit(by, width, method, width, routing):
        raise UserError(f"`by`: {why}")
    if max_size is not None:
        if by not in catalogue.BOUNDED:
            raise UserError(f"`max_size` applies to groups by {', '.join(catalogue.BOUNDED)}; these are by {by}")
        if isinstance(max_size, bool) or not isinstance(max_size, numbers.Integral) or max_size < 2:
            raise UserError(f"`max_size` must be a whole number of at least 2, or None; got {shown(max_size)}")
        for entry in described["layers"]:
            if (groups := kept.get(entry["layer"], entry["experts"])) * int(max_size) < entry["experts"]:
                raise UserError(f"`max_size` {max_size} is too small for {groups} groups of {entry['experts']} experts")
    if search is not None and (by != "selection" or not isinstance(search, str) or search not in ("full", "quick")):
        raise UserError(f"`search` must be full or quick, with groups by selection; got {shown(search)} by {by}")
    return {"by": by, "max_size": max_size, "search": search}


def summary(described: ModelLayout, kept: Mapping[int, int], method: str, refined: Mapping[str, Any] | None) -> str:
    """Return a sentence on what compress is about to do; kept: {layer: M}."""
    counts = {entry["layer"]: entry["experts"] for entry in described["layers"]}
    pairs = dict.fromkeys((counts[layer], m) for layer, m in kept.items())
    sizes = ", ".join(f"{n} experts to {m}" for n, m in pairs)
    steps = f"{refined['steps']} steps" if refined and refined["steps"] != "auto" else "as many steps as pay"
    then = f", then a refine of {steps}" if refined else ""
    return f"compress: {len(kept)} layers, {sizes or 'no change'}, by `{method}`{then}"


def check_mode(batch_tokens: object) -> None:
    """Check how compress is to run: batches of tokens, and no inference mode, whose tensors no gradient can use."""
    if not isinstance(batch_tokens, numbers.Integral) or not 0 < int(batch_tokens) <= 2**30:
        raise UserError(f"`batch_tokens` must be a whole number above 0; got {shown(batch_tokens)}")
    if torch.is_inference_mode_enabled():
        raise UserError("compress does not run inside torch.inference_mode(). Call it outside; torch.no_grad() does")
