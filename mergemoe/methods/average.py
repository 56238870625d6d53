"""Plain averages of the members' matrices: the baseline of both papers."""

from mergemoe.merging.averaging import plain_mean
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the mean of W_G, W_U and W_D."""
    groups = problem.merged_groups
    return [Merged(group, expert, {}) for group, expert in zip(groups, plain_mean(problem, groups), strict=True)]
