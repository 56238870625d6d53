"""HC-SMoE: usage-weighted means of all matrices, in groups of experts whose outputs are alike (`by: outputs`)."""

from mergemoe.merging.averaging import usage_mean
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the usage-weighted mean of W_G, W_U and W_D."""
    groups = problem.merged_groups
    return [Merged(group, expert, {}) for group, expert in zip(groups, usage_mean(problem, groups), strict=True)]
