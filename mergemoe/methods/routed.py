"""Routed least squares (ours): each down-projection is fitted to the routed output of its group.

    W_i = argmin sum_x || W t_i(x) p_i(x) - sum_{j in C_i} g_j(x) E_j(x) ||^2 + prior

over the tokens that chose a member. So the merged expert can behave like expert j on the tokens of expert j, which no
average of the papers can, whatever T1 is.
"""

from typing import Literal

import torch

from mergemoe.merging import feature_rules, ridge_regression
from mergemoe.merging.group_moments import group_sums
from mergemoe.moe.experts import down_of, joined, with_down
from mergemoe.moe.problem import Merged, Problem
from mergemoe.moe.records import MethodRecord


def merge(
    problem: Problem,
    features: feature_rules.Features,
    kept: int,
    ridge: float | Literal["auto"],
) -> list[Merged]:
    """Return, per group, the expert with those features, `kept` neurons and its own least squares."""
    groups = problem.groups if kept < problem.experts.up.shape[1] else problem.merged_groups
    if not groups:
        return []
    experts = feature_rules.merged_experts(problem, groups, features, kept)
    heldout = problem.reader.count(heldout=True)
    fitted, unseen = (group_sums(problem, groups, joined(experts), heldout=part) for part in (False, True))
    solved = ridge_regression.fit(fitted, unseen, torch.stack([down_of(expert) for expert in experts]), ridge, heldout)
    errors = zip(fitted.relative_errors(solved.downs), unseen.relative_errors(solved.downs), strict=True)
    results: list[Merged] = []
    for place, (group, (fit, rest)) in enumerate(zip(groups, errors, strict=True)):
        tokens, gram = int(fitted.tokens[place]), fitted.gram[place]
        record: MethodRecord = {
            **solved.ridge_record(),
            **ridge_regression.diagnose_tokens(tokens, kept, f"group {group.number}", gram),
            "objective": {"fit": fit, "heldout": rest},
        }
        results.append(Merged(group, with_down(experts[place], solved.downs[place]), record))
    return results
