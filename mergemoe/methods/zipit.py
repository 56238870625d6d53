"""ZipIt (arXiv 2305.03053, as adapted by arXiv 2310.01334): the most correlated neurons of a group become one.

A member's neurons may be zipped with one another, too; no order has to be found first.
"""

from mergemoe.merging.zipping import zipped
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the expert of its units."""
    groups = problem.several
    return [Merged(group, expert, {}) for group, expert in zip(groups, zipped(problem, groups), strict=True)]
