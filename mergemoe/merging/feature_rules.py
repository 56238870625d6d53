"""Feature rules: each name that `features` may have, with the function that makes such experts."""

from collections.abc import Sequence
from typing import Literal

from mergemoe.errors import UserError
from mergemoe.merging import averaging, neuron_selection, zipping
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Problem

Features = Literal["plain", "usage", "aligned", "zipped", "selected"]


def merged_experts(problem: Problem, groups: Sequence[Group], named: Features, width: int) -> list[Experts]:
    """Return one expert (E = 1) per group, its down-projection being the prior of the solve.

    Raises:
        UserError: if averaged features are to be narrower than the experts.
    """
    if named == "selected":
        return neuron_selection.selected_experts(problem, groups, width)
    if width < problem.experts.up.shape[1]:
        raise UserError(f"`width` below 1 needs `features: selected`: `features: {named}` are averages")
    if named == "aligned":
        from mergemoe.merging.alignment import aligned_mean  # needs scipy

        return aligned_mean(problem, groups)
    rules = {"plain": averaging.plain_mean, "usage": averaging.usage_mean, "zipped": zipping.zipped_experts}
    return rules[named](problem, groups)
