"""Which groupings belong to which method: a baseline is never shown under its name with another one's grouping."""

from collections.abc import Mapping
from typing import Any, Literal

ANY = ("weights", "router", "outputs", "selection")
GROUPINGS = {
    "average": ANY,
    "msmoe": ("router",),
    "zipit": ANY,
    "hcsmoe": ("outputs",),
    "mergemoe": ("weights",),
    "oracle": ("weights",),
    "reap": ("saliency",),
    "unsolved": (*ANY, "saliency"),
    "routed": ANY,
    "joint": (*ANY, "saliency"),
    "select": ("selection",),
    "slim": ("none",),
}
CHOOSES_ROUTING = ("unsolved", "joint")
ROUTINGS = ("preserved", "pruned", "folded")


def routing(method: str, options: Mapping[str, Any]) -> str:
    """Return what a method does to the router: preserved, pruned or folded."""
    return "pruned" if method == "reap" else options.get("routing", "preserved")


def misfit(
    by: str, counted_width: float | Literal["auto"], method: str, width: float | Literal["auto"], routing: str
) -> str | None:
    """Return why a grouping does not fit a method; None where it does.

    Args:
        by: how experts are grouped.
        counted_width: the share of neurons that the grouping `selection` counts with; auto where a budget says it.
        method: what merges them.
        width: the share of neurons that it keeps; auto: what the groups were counted with.
        routing: what it does to the router.
    """
    if by not in GROUPINGS[method]:
        return f"method {method} goes with groups by {', '.join(GROUPINGS[method])}, not by {by}"
    if (by == "saliency") != (routing == "pruned"):
        return (
            f"groups by {by} {'prune experts' if by == 'saliency' else 'keep every expert'}, the routing is {routing}"
        )
    if by == "selection" and counted_width == "auto" != width:
        return "the groups are counted with the width that suits a share: set `width: auto` in method select"
    if by == "selection" and "auto" != width != counted_width:
        return f"the groups count with width {counted_width}, the method keeps {width}"
    return None
