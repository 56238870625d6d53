"""M-SMoE (arXiv 2310.01334): neurons aligned to the dominant expert's, then usage-weighted means of all matrices.

The paper aligns to expert 0 of the layer and does not say how for gated experts; here every member is aligned to the
dominant expert of its group, over gate, up and down.
"""

from mergemoe.merging.alignment import aligned
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the aligned usage-weighted mean."""
    groups = problem.several
    return [Merged(group, expert, {}) for group, expert in zip(groups, aligned(problem, groups), strict=True)]
