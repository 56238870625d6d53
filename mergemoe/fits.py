"""Which groupings belong to which method: a baseline is never shown under its name with another one's grouping."""

ANY = ("weights", "router", "outputs", "selection")
GROUPINGS = {
    "average": ANY,
    "msmoe": ("router",),
    "zipit": ANY,
    "hcsmoe": ("outputs",),
    "mergemoe": ("weights",),
    "oracle": ("weights",),
    "routed": ANY,
    "joint": ANY,
    "select": ("selection",),
    "slim": ("none",),
}


def misfit(by: str, counted_width: float, method: str, width: float) -> str | None:
    """Return why a grouping does not fit a method; None where it does.

    Args:
        by: how experts are grouped.
        counted_width: the share of neurons that the grouping `selection` counts with.
        method: what merges them.
        width: the share of neurons that it keeps.
    """
    if by not in GROUPINGS[method]:
        return f"method {method} goes with groups by {', '.join(GROUPINGS[method])}, not by {by}"
    if by == "selection" and counted_width != width:
        return f"the groups count with width {counted_width}, the method keeps {width}"
    return None
