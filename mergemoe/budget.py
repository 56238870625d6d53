"""How many experts a layer keeps, and how many tokens its solve then needs. Imports nothing heavy."""

import math

from mergemoe.errors import UserError


def kept_experts(experts: int | float | None, total: int) -> int:
    """Return M: an int is M itself, a float the share of N that is kept, rounded up; None keeps all.

    Raises:
        UserError: where more experts are asked for than there are.
    """
    if experts is None:
        return total
    if isinstance(experts, int):
        if experts > total:
            raise UserError(f"`experts: {experts}` asks for more experts than the layer has ({total}); see `cluster`")
        return experts
    return math.ceil(round(experts * total, 9))


def needed_tokens(kept: int, width: int) -> dict[str, int]:
    """Return the tokens that a solve must exceed, with margin (docs/method.md).

    `group`: tokens of one group for its own least squares, I'; `joint`: tokens of the layer for all groups, M I'.
    """
    return {"group": width, "joint": kept * width}
