"""Averaged features: gate, up and down of a merged expert are means over its members (T2, T3 of the papers).

Each function returns one expert (E = 1) per group, in float64.
"""

from collections.abc import Sequence

from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Problem


def plain_mean(problem: Problem, groups: Sequence[Group]) -> list[Experts]:
    """Return the plain mean of every matrix."""
    return [problem.experts[g.members].map(lambda m: m.double().mean(0, keepdim=True)) for g in groups]


def usage_mean(problem: Problem, groups: Sequence[Group]) -> list[Experts]:
    """Return the usage-weighted mean of every matrix (arXiv 2510.14436, Theorem 1; 2310.01334)."""
    return [problem.experts[group.members].map(group.mean) for group in groups]
