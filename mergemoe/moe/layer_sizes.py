"""Sizes of a layer: experts and neurons that it keeps, and the tokens that its solve needs. Imports nothing heavy."""

import math
import numbers
import re

from mergemoe.errors import UserError, shown
from mergemoe.moe.records import TokenNeeds

STEPS = 8  # sizes are measured at every eighth of the experts
GRAM_BYTES = 1 << 28  # of the pools' Grams held at once; with the cross sums and what is made of both, 5 times as much
FEATURE_BYTES = 1 << 31  # of all experts' features on all fitted tokens that a grouping by selection keeps
MIXTURES = 256  # random mixtures of outputs that a ridge is chosen by (merging/output_mixtures.py)
WIDTH_MULTIPLE = 32  # neurons: the smallest block in which GGUF, GPTQ and AWQ quantize a row


def kept_experts(experts: int | float | None, total: int) -> int:
    """Return M: an int is M itself, a float the share of N that is kept, rounded up; None keeps all.

    Raises:
        UserError: if more experts are asked for than the layer has.
    """
    if experts is None:
        return total
    whole = isinstance(experts, numbers.Integral)  # also numpy's
    if (
        isinstance(experts, bool)
        or not isinstance(experts, numbers.Real)
        or not experts > 0
        or not whole
        and experts > 1
    ):
        raise UserError(
            f"experts: {shown(experts)} is neither a whole number above 0, kept experts, nor a share in (0, 1]"
        )
    if whole:
        if experts > total:
            raise UserError(
                f"`experts: {shown(experts)}` asks for more experts than the layer has ({total}); see `cluster`"
            )
        return int(experts)
    return max(1, math.ceil(round(experts * total, 9)))


def kept_width(share: float, width: int, multiple: int) -> int:
    """Return I', the share of the experts' neurons that is kept, rounded up to a multiple.

    If I is no multiple of it, I' is one of the largest number that divides both: of 8 for I = 200 and 32.
    """
    step = math.gcd(width, multiple)
    return max(1, math.ceil(round(share * width / step, 9))) * step


def quarter(count: int) -> int:
    """Return a quarter of the neurons or outputs with which a quick search counts, rounded up."""
    return -(-count // 4)


def features_fit(experts: int, width: int, tokens: int) -> bool:
    """Tell whether a grouping by selection keeps the features of all experts on all tokens, in float32."""
    return 4 * experts * width * tokens <= FEATURE_BYTES


def layer_bounds(layers: str) -> tuple[int, float]:
    """Return the first and the last layer number of a range.

    Raises:
        UserError: if the text is no range.
    """
    if layers == "all":
        return 0, float("inf")
    if not (match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", layers)):
        raise UserError(f"layers: {shown(layers)} is neither `all` nor a range such as '2-3'")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UserError(f"layers: {shown(layers)} is an empty range")
    return first, last


def needed_tokens(kept: int, width: int) -> TokenNeeds:
    """Return the tokens that a solve must exceed, with margin (docs/method.md).

    `group`: tokens of one group for its own least squares, I'; `joint`: tokens of the layer for all groups, M I'.
    """
    return {"group": width, "joint": kept * width}


def measured_experts(experts: int, max_size: int | None) -> list[int]:
    """Return the numbers of groups at which a layer is measured, if no group has more than `max_size` experts."""
    kept = {-(-experts * step // STEPS) for step in range(1, STEPS + 1)}
    return sorted(m for m in kept if m * (max_size or experts) >= experts)


def measured_sizes(
    experts: int, width: int, share: float | None, counted: int, multiple: int, max_size: int | None = None
) -> list[tuple[int, int]]:
    """Return the sizes (M, I') at which a layer is measured.

    Args:
        experts: N.
        width: I.
        share: of the routed weights that may stay; None if only experts are removed.
        counted: I' of every size if `share` is None.
        multiple: as kept_width has it; the I' of a share is rounded down.
        max_size: experts of a group at most.
    """
    kept = measured_experts(experts, max_size)
    if share is None:
        return [(m, counted) for m in kept]
    step = math.gcd(width, multiple)
    most = [(m, int(share * experts * width / m + 1e-9) // step * step) for m in kept if m >= share * experts - 1e-9]
    return [(m, narrower) for m, narrower in most if narrower]
