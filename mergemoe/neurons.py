"""The features of merged experts by name, and how many neurons they keep."""

import math
from collections.abc import Sequence
from typing import Literal

from mergemoe import alignment, averaging, selection
from mergemoe.errors import UserError
from mergemoe.problem import Group, Problem
from mergemoe.weights import Experts

Features = Literal["plain", "usage", "aligned", "selected"]
_AVERAGES = {"plain": averaging.plain, "usage": averaging.by_usage, "aligned": alignment.aligned}


def features(problem: Problem, groups: Sequence[Group], named: Features, width: int) -> list[Experts]:
    """Return one expert (E = 1) per group, its down-projection being the prior of the solve.

    Raises:
        UserError: where averaged features are to be narrower than the experts.
    """
    if named == "selected":
        return selection.selected(problem, groups, width)
    if width < problem.experts.up.shape[1]:
        raise UserError(f"`width` below 1 needs features that are picked: `features: {named}` are averages")
    return _AVERAGES[named](problem, groups)


def kept_width(problem: Problem, share: float) -> int:
    """Return I', the share of the experts' neurons that is kept, rounded up."""
    return math.ceil(round(share * problem.experts.up.shape[1], 9))
