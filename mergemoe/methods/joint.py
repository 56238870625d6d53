"""Joint least squares (ours): all down-projections of a layer at once, against its whole routed output.

    min over W_1 .. W_M of sum_x || sum_i W_i t_i(x) p_i(x) - y(x) ||^2 + prior

The merged experts of a token may correct one another. There are M I' unknown columns, so the solve needs K times the
tokens of a solve group by group. It is direct if its sums fit `memory`, or the kernel of its tokens, which are then
fewer; else it uses conjugate gradients.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from mergemoe.joint_solves import conjugate_gradients, kernel_ridge
from mergemoe.joint_solves.routed_features import RoutedFeatures
from mergemoe.joint_solves.rows import bytes_needed
from mergemoe.merging import feature_rules, ridge_regression
from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.layer_moments import layer_sums
from mergemoe.merging.least_squares import effective_rank
from mergemoe.moe.experts import Experts, down_of, joined, with_down
from mergemoe.moe.layer_sizes import MIXTURES
from mergemoe.moe.problem import Merged, Problem
from mergemoe.moe.records import ByPart, JointOrRouted, MethodRecord

# Memory at the peak, besides the experts: Gram matrices of the direct solve (fitted, held out, damped, factor, and two
# while they are made), and matrices shaped like the down-projections of the solve group by group.
COPIES, HELD = 6, 6


def merge(
    problem: Problem,
    features: feature_rules.Features,
    kept: int,
    ridge: float | Literal["auto"],
    memory: float,
) -> list[Merged]:
    """Return, for every group of the layer, the expert with those features, `kept` neurons and the joint solution."""
    experts = feature_rules.merged_experts(problem, problem.groups, features, kept)
    columns = [down_of(expert).shape[1] for expert in experts]
    direct = 8 * COPIES * sum(columns) * (sum(columns) + problem.experts.down.shape[1]) <= memory * 1e9
    rows = bytes_needed(min(MIXTURES, problem.experts.down.shape[1]), max(columns), len(columns))
    passes = RoutedFeatures(problem, experts, room=0 if direct else min(memory * 1e9 / 2, memory * 1e9 - rows))
    if direct:
        solved, record = _direct(problem, experts, ridge)
    elif by_kernel := kernel_ridge.fit(passes, experts, ridge, memory):
        solved, record = by_kernel, MethodRecord(objective=passes.errors(by_kernel.downs[0]))
    else:
        solved, record = conjugate_gradients.fit(problem, experts, passes, ridge, memory)
    tokens, unknowns = problem.reader.count(), kept * len(experts)
    layer = ridge_regression.diagnose_tokens(tokens, unknowns, "the layer")
    record["layer_tokens"], record["layer_unknowns"] = layer["tokens"], layer["unknowns"]
    sums = 8 * len(experts) * max(columns) * (2 * max(columns) + HELD * problem.experts.down.shape[1]) + passes.bytes
    if ridge == "auto" and tokens < 2 * unknowns and problem.changed is None and sums <= memory * 1e9:
        solved, record = _or_routed(problem, passes, experts, solved, record)
    record.update(solved.ridge_record())
    parts = torch.split(solved.downs[0], columns, dim=1)
    results: list[Merged] = []
    for group, expert, part, own in zip(problem.groups, experts, parts, routed_tokens(problem), strict=True):
        few = ridge_regression.diagnose_tokens(own, kept, f"group {group.number}")
        results.append(Merged(group, with_down(expert, part), {**few, **record}))
    return results


def routed_tokens(problem: Problem) -> list[int]:
    """Return how many fitted tokens each group has."""
    counts = torch.zeros(len(problem.groups), dtype=torch.int64)
    for tokens in problem.chunks(heldout=False):
        counts += (problem.shares(tokens) != 0).sum(0).cpu()
    return [int(count) for count in counts]


def _direct(
    problem: Problem, experts: Sequence[Experts], ridge: float | Literal["auto"]
) -> tuple[ridge_regression.Fit, MethodRecord]:
    """Return the solution from the sums of the whole layer, and for the record its errors."""
    fitted, unseen = (layer_sums(problem, experts, heldout=part) for part in (False, True))
    unseen_tokens = problem.reader.count(heldout=True)
    solved = ridge_regression.fit(
        fitted, unseen, torch.cat([down_of(expert) for expert in experts], 1)[None], ridge, unseen_tokens
    )
    errors: ByPart = {
        "fit": fitted.relative_errors(solved.downs)[0],
        "heldout": unseen.relative_errors(solved.downs)[0],
    }
    return solved, {"objective": errors, "effective_rank": effective_rank(fitted.gram[0])}


def _or_routed(
    problem: Problem,
    passes: RoutedFeatures,
    experts: Sequence[Experts],
    solved: ridge_regression.Fit,
    record: MethodRecord,
) -> tuple[ridge_regression.Fit, MethodRecord]:
    """Return the solution group by group if it is nearer to the held-out outputs, else the joint one."""
    fitted, unseen = (group_sums(problem, problem.groups, joined(experts), heldout=part) for part in (False, True))
    priors, heldout = torch.stack([down_of(expert) for expert in experts]), problem.reader.count(heldout=True)
    by_group = ridge_regression.fit(fitted, unseen, priors, "auto", heldout)
    by_group = ridge_regression.Fit(torch.cat(tuple(by_group.downs), 1)[None], by_group.ridge, by_group.tried)
    errors = passes.errors(by_group.downs[0])
    assert "objective" in record
    both: JointOrRouted = {"joint": record["objective"]["heldout"], "routed": errors["heldout"]}
    if (both["joint"] or 0.0) <= (both["routed"] or 0.0):
        return solved, {**record, "solved": "joint", "heldout_error": both}
    return by_group, {**record, "solved": "routed", "heldout_error": both, "objective": errors}
