"""ZipIt (arXiv 2305.03053, as adapted by arXiv 2310.01334): join the most correlated neurons of a group.

Two neurons of the same member may be joined, too, and no alignment is needed first.
"""

from mergemoe.merging.zipping import zipped_experts
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the expert of its joined neurons."""
    groups = problem.merged_groups
    return [Merged(group, expert, {}) for group, expert in zip(groups, zipped_experts(problem, groups), strict=True)]
