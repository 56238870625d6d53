"""M-SMoE (arXiv 2310.01334): align the neurons to the dominant expert, then take usage-weighted means of all matrices.

The paper aligns to expert 0 of the layer and does not say how for gated experts. Here every member is aligned to the
dominant expert of its group, by gate, up and down together.
"""

from mergemoe.merging.alignment import aligned_mean
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the aligned usage-weighted mean."""
    groups = problem.merged_groups
    return [Merged(group, expert, {}) for group, expert in zip(groups, aligned_mean(problem, groups), strict=True)]
