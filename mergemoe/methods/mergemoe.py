"""MergeMoE (arXiv 2510.14436): usage-weighted features, least squares for the down-projection.

A group with weights w_j = f_j / sum f (Theorem 1) gets gate and up projections sum_j w_j W^j (T2, T3, eq. 4), and the
down-projection W_D' T1, T1 = Q P^+ (eqs. 5, 6). W_D' are the members' down-projections w_j W_D^j side by side, Q their
features stacked, and P the features of the merged expert, over all fitted tokens, also those not routed to the group.
T1 is never formed: W_D' Q is the weighted output of the members, so sums over tokens are enough (docs/method.md). A
family's norm after the down-projection is left out on both sides: least squares covers the linear part only.
"""

from collections.abc import Sequence

import torch

from mergemoe.merging import ridge_regression
from mergemoe.merging.averaging import usage_mean
from mergemoe.merging.constant_moments import constant_sums
from mergemoe.merging.least_squares import Solution, solve_down
from mergemoe.moe.experts import with_down
from mergemoe.moe.problem import Group, Merged, Problem
from mergemoe.moe.records import MethodRecord

EXCESS = 1e-6  # of the output's energy: what products in float32 may add to the squared error


def merge(problem: Problem, ridge: float) -> list[Merged]:
    """Return, per group, the merged expert and how well the tokens pin it down."""
    groups = problem.merged_groups
    if not groups:
        return []
    solutions = _solutions(problem, groups, ridge)
    averaged = usage_mean(problem, groups)
    results: list[Merged] = []
    for group, expert, solution in zip(groups, averaged, solutions, strict=True):
        record: MethodRecord = {
            **ridge_regression.diagnose_tokens(solution.tokens, expert.up.shape[1], f"group {group.number}"),
            "rank": solution.rank,
            "effective_rank": solution.effective_rank,
            "condition": solution.condition,
        }
        results.append(Merged(group, with_down(expert, solution.down), record))
    return results


def _solutions(problem: Problem, groups: Sequence[Group], ridge: float) -> list[Solution]:
    """Return the solution of each group, from products in float64 where float32 is not enough."""
    sums = list(constant_sums(problem, groups))
    penalty = ridge * ridge_regression.typical_energy(torch.stack([one.gram.diagonal() for one in sums]))
    solutions = [solve_down(one, penalty) for one in sums]
    again = [i for i, solution in enumerate(solutions) if solution.excess > EXCESS]
    for i, exact in zip(again, constant_sums(problem, [groups[i] for i in again], exact=True), strict=True):
        solutions[i] = solve_down(exact, penalty)
    return solutions
