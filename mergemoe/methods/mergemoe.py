"""MergeMoE (arXiv 2510.14436): usage-weighted features, least squares for the down-projection.

A group with weights w_j = f_j / sum f (Theorem 1) gets gate and up projections sum_j w_j W^j (T2, T3, eq. 4), and the
down-projection W_D' T1, T1 = Q P^+ (eqs. 5, 6). W_D' are the members' down-projections w_j W_D^j side by side, Q their
features stacked, and P the features of the merged expert, over all fitted tokens, also those not routed to the group.
T1 is never formed: W_D' Q is the weighted output of the members, so sums over tokens are enough (docs/method.md). A
family's norm after the down-projection is left out on both sides: least squares covers the linear part only.
"""

import torch
from torch import Tensor

from mergemoe.merging import ridge_regression
from mergemoe.merging.averaging import usage_mean
from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.least_squares import solve_down
from mergemoe.moe.experts import joined, with_down
from mergemoe.moe.problem import Merged, Problem
from mergemoe.moe.records import MethodRecord


def merge(problem: Problem, ridge: float) -> list[Merged]:
    """Return, per group, the merged expert and how well the tokens pin it down."""
    groups = problem.merged_groups
    if not groups:
        return []
    averaged = usage_mean(problem, groups)
    weights = usage_weights(problem)
    fitted, unseen = (group_sums(problem, groups, joined(averaged), part, weights) for part in (False, True))
    scale = ridge_regression.typical_energy(fitted.gram.diagonal(dim1=1, dim2=2))
    solutions = solve_down(fitted, ridge * scale)
    downs = torch.stack([solution.down for solution in solutions])
    errors = zip(fitted.relative_errors(downs), unseen.relative_errors(downs), strict=True)
    results: list[Merged] = []
    for place, (group, expert, solution, (fit, heldout)) in enumerate(
        zip(groups, averaged, solutions, errors, strict=True)
    ):
        record: MethodRecord = {
            **ridge_regression.diagnose_tokens(int(fitted.tokens[place]), expert.up.shape[1], f"group {group.number}"),
            "rank": solution.rank,
            "effective_rank": solution.effective_rank,
            "condition": solution.condition,
            "objective": {"fit": fit, "heldout": heldout},
        }
        results.append(Merged(group, with_down(expert, solution.down), record))
    return results


def usage_weights(problem: Problem) -> Tensor:
    """Return w_j [N]: constant weights used instead of each token's routing weights."""
    weights = torch.zeros(len(problem.experts), dtype=torch.float64, device=problem.experts.down.device)
    for group in problem.groups:
        weights[group.members] = group.weights.to(weights)
    return weights
