"""How many experts a layer keeps, and how many tokens its solve then needs. Imports nothing heavy."""

import math
import re

from mergemoe.errors import UserError


def kept_experts(experts: int | float | None, total: int) -> int:
    """Return M: an int is M itself, a float the share of N that is kept, rounded up; None keeps all.

    Raises:
        UserError: where more experts are asked for than there are.
    """
    if experts is None:
        return total
    if isinstance(experts, bool) or experts <= 0 or (isinstance(experts, float) and experts > 1):
        raise UserError(f"experts: {experts} is neither a whole number above 0, kept experts, nor a share in (0, 1]")
    if isinstance(experts, int):
        if experts > total:
            raise UserError(f"`experts: {experts}` asks for more experts than the layer has ({total}); see `cluster`")
        return experts
    return math.ceil(round(experts * total, 9))


def kept_width(share: float, width: int) -> int:
    """Return I', the share of the experts' neurons that is kept, rounded up."""
    return math.ceil(round(share * width, 9))


def layer_bounds(layers: str) -> tuple[int, float]:
    """Return the first and the last layer number of a range.

    Raises:
        UserError: where it is none.
    """
    if layers == "all":
        return 0, float("inf")
    if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", layers)):
        raise UserError(f"layers: {layers!r} is neither `all` nor a range such as '2-3'")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UserError(f"layers: {layers!r} is an empty range")
    return first, last


def needed_tokens(kept: int, width: int) -> dict[str, int]:
    """Return the tokens that a solve must exceed, with margin (docs/method.md).

    `group`: tokens of one group for its own least squares, I'; `joint`: tokens of the layer for all groups, M I'.
    """
    return {"group": width, "joint": kept * width}
