"""The table of methods: the groupings that each one fits, and its options.

params.yaml, `mergemoe.compress` and docs/method.md take names, defaults, ranges and descriptions from here. A new
method is a file in this folder and a row in `METHODS`. No method and no stage imports this module, so that a new row
reruns nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from mergemoe.methods.options import Method, Option
from mergemoe.moe.layer_sizes import WIDTH_MULTIPLE as WIDTH_MULTIPLE_DEFAULT
from mergemoe.moe.layer_sizes import kept_width as rounded_width

ANY = ("weights", "router", "outputs", "selection")
BOUNDED = ("weights", "router", "selection")  # the groupings that take `max_size`

WIDTH = Option(
    "share of an expert's neurons that is kept, rounded up to a multiple of `width_multiple`",
    default=1.0,
    above=0,
    at_most=1,
)
WIDTH_MULTIPLE = Option(
    "the number of neurons kept is a multiple of it, as far as that of the original expert is; 128 or 256 for formats "
    "that quantize in blocks of so many (`mergemoe plan` lists them)",
    default=WIDTH_MULTIPLE_DEFAULT,
    at_least=1,
    whole=True,
)
WIDTH_OF_SHARE = replace(WIDTH, text=f"{WIDTH.text}; auto: the width chosen for `share` of `cluster`", words=("auto",))
WIDTHS = {"width": WIDTH, "width_multiple": WIDTH_MULTIPLE}
FEATURES = Option(
    "gate and up projections of a merged expert: plain or usage-weighted mean, usage-weighted mean of aligned neurons, "
    "zipped neurons, or the group's best neurons (selected)",
    default="usage",
    words=("plain", "usage", "aligned", "zipped", "selected"),
)
ROUTING = Option(
    "rows of the router: one per original expert (preserved), per kept expert (pruned), or one new per group (folded)",
    default="preserved",
    words=("preserved", "pruned", "folded"),
)
RIDGE = Option(
    "pull toward the down-projection that comes with the features, in units of the typical (median) neuron's energy; "
    "auto: the value with the least error on held-out tokens",
    default="auto",
    words=("auto",),
    at_least=0,
)
RIDGE_TO_ZERO = Option(
    "pull toward zero, in units of the typical (median) neuron's energy; 0 is the paper's method",
    default=0.0,
    at_least=0,
)
MEMORY = Option(
    "GB for the sums of a layer; one that needs more is solved in its dual form or iteratively", default=8.0, above=0
)

METHODS = {
    "average": Method("plain mean of all matrices", ANY),
    "msmoe": Method("M-SMoE: usage-weighted mean after the neurons are aligned", ("router",)),
    "zipit": Method("ZipIt: the neurons whose features correlate most become one", ANY),
    "hcsmoe": Method("HC-SMoE: usage-weighted mean", ("outputs",)),
    "mergemoe": Method(
        "MergeMoE: usage-weighted mean, least squares for the down-projection",
        ("weights",),
        {"ridge": RIDGE_TO_ZERO},
    ),
    "oracle": Method("the exact weighted output of each group; larger than the original", ("weights",)),
    "reap": Method(
        "REAP: the most salient experts stay, the others are pruned",
        ("saliency",),
        {"routing": replace(ROUTING, default="pruned", words=("pruned",))},
    ),
    "unsolved": Method(
        "any features with the down-projection that comes with them",
        (*ANY, "saliency"),
        {"features": FEATURES, **WIDTHS, "routing": ROUTING},
    ),
    "routed": Method(
        "any features, least squares on the routed output, group by group",
        ANY,
        {"features": FEATURES, **WIDTHS, "ridge": RIDGE},
    ),
    "joint": Method(
        "any features, least squares on the routed output, all groups of a layer at once",
        (*ANY, "saliency"),
        {"features": FEATURES, **WIDTHS, "routing": ROUTING, "ridge": RIDGE, "memory": MEMORY},
    ),
    "select": Method(
        "the best neurons of each group, solved like `joint`",
        ("selection",),
        {**WIDTHS, "width": WIDTH_OF_SHARE, "ridge": RIDGE, "memory": MEMORY},
    ),
    "slim": Method(
        "the best neurons of each expert, solved like `joint`; nothing is merged",
        ("none",),
        {**WIDTHS, "width": replace(WIDTH, default=None), "ridge": RIDGE, "memory": MEMORY},
    ),
}


def complete(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method: `options`, and the defaults of those that are not given."""
    return {name: options.get(name, option.default) for name, option in METHODS[method].options.items()}


def conflict(options: Mapping[str, Any]) -> str | None:
    """Return why the options of a method exclude one another; None if they do not."""
    features, width = options.get("features", "selected"), options.get("width", 1.0)
    if features != "selected" and width < 1:
        return f"`width` below 1 needs `features: selected`: {features} are averages"
    return None


def kept_width(options: Mapping[str, Any], width: int) -> int:
    """Return I', the neurons that a method with these options keeps of I; all if it has no option for it."""
    return rounded_width(options.get("width", 1.0), width, options.get("width_multiple", 1))


def routing(method: str, options: Mapping[str, Any]) -> str:
    """Return a method's routing mode: preserved, pruned or folded."""
    return complete(method, options).get("routing", "preserved")


def usual_grouping(method: str, routing: str) -> str:
    """Return the grouping that `mergemoe.compress` uses: a method's first, and saliency if the router is pruned."""
    return "saliency" if routing == "pruned" else METHODS[method].groupings[0]


def misfit(
    by: str, counted_width: float | Literal["auto"], method: str, width: float | Literal["auto"], routing: str
) -> str | None:
    """Return why a grouping does not fit a method; None if it does.

    A baseline is never shown under its own name with another one's grouping.

    Args:
        by: how experts are grouped.
        counted_width: the share of neurons that the grouping `selection` counts with; auto if a budget chooses it.
        method: what merges them.
        width: the share of neurons that it keeps; auto: what the groups were counted with.
        routing: what it does to the router.
    """
    groupings = METHODS[method].groupings
    if by not in groupings:
        return f"method {method} needs groups by {', '.join(groupings)}, not by {by}"
    if (by == "saliency") != (routing == "pruned"):
        fate = "prune experts" if by == "saliency" else "keep every expert"
        return f"groups by {by} {fate}, but the routing is {routing}"
    if by == "selection" and counted_width == "auto" != width:
        return "`share` in `cluster` chooses the width: set `width: auto` in method select"
    if by == "selection" and "auto" != width != counted_width:
        return f"the groups are made for width {counted_width}, but the method keeps {width}"
    return None
