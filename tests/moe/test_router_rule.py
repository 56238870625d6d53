"""Routers that lose rows: the rule token by token, what pruning and folding make of it, and the solve behind them."""

from dataclasses import replace

import numpy as np
import problems
import pytest
import torch
from problems import merge

from mergemoe.errors import UserError
from mergemoe.grouping import cluster
from mergemoe.grouping.by_selection import by_selection
from mergemoe.merging.alignment import reordered
from mergemoe.merging.solve import rerouted
from mergemoe.methods import joint, reap, unsolved
from mergemoe.moe.problem import groups_of
from mergemoe.moe.router_rule import Router, Rule, check_rule, pruned_router
from mergemoe.moe.tokens import Tokens

SOFTMAX = Rule("softmax", top_k=2, normalized=True)
UNNORMALIZED = Rule("softmax", top_k=2, normalized=False)
SIGMOID = Rule("sigmoid", top_k=2, normalized=True, scaling=2.5)
GROUPED = Rule("sigmoid", top_k=2, normalized=True, scaling=2.5, groups=3, top_groups=2)
RULES = {"softmax": SOFTMAX, "not normalized": UNNORMALIZED, "sigmoid": SIGMOID, "groups": GROUPED}


def by_hand(rule, logits, bias):
    """Routing weights of one token, step by step."""
    scores = np.exp(logits) / np.exp(logits).sum() if rule.scores == "softmax" else 1 / (1 + np.exp(-logits))
    choice, size = scores + bias, len(scores) // rule.groups
    best = sorted(range(rule.groups), key=lambda g: -np.sort(choice[g * size : (g + 1) * size])[-2:].sum())
    open_to = [expert for g in best[: rule.top_groups] for expert in range(g * size, (g + 1) * size)]
    chosen = sorted(open_to, key=lambda expert: -choice[expert])[: rule.top_k]
    whole = scores[chosen].sum() if rule.normalized else 1.0
    return np.array([scores[e] / whole * rule.scaling if e in chosen else 0.0 for e in range(len(scores))])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_a_rule_is_what_a_token_goes_through_by_hand(rule, biased):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64) if biased else None
    numbers = np.zeros(6) if bias is None else bias.numpy()
    expected = np.stack([by_hand(rule, row, numbers) for row in logits.numpy()])
    np.testing.assert_allclose(rule.weights(logits, bias).numpy(), expected, rtol=1e-12)


def routed_problem(rule, expert_map=(0, 0, 1, 2, 1, 3), biased=False, tokens=150, seed=0):
    """A layer whose tokens were routed by a router of its own, and that router."""
    whole = problems.problem(expert_map=expert_map, biased=biased, tokens=tokens, seed=seed)
    rows = torch.randn(6, 7, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)

    def reroute(given):
        logits = given.hidden @ rows.T
        weight, index = rule.weights(logits).topk(rule.top_k)
        return Tokens(given.hidden, index, weight, logits)

    parts = whole.reader.parts
    reader = problems.Given(reroute(parts[False]), reroute(parts[True]))
    usage = torch.bincount(reader.parts[False].index.flatten(), minlength=6).tolist()
    return replace(whole, reader=reader, groups=groups_of(list(expert_map), usage)), Router(rule, rows)


def written_out(problem, router, experts):
    """The design and the target of the whole layer behind another router, token by token."""
    rows, targets = [], []
    for x, g in problems.each_token(problem):
        t = by_hand(router.rule, (router.rows @ x).numpy(), np.zeros(len(router.rows)))
        p = [problems.features(expert, 0, x).numpy() for expert in experts]
        p = [part if e.down_bias is None else np.append(part, 1.0) for part, e in zip(p, experts, strict=True)]
        rows.append(np.concatenate([share * part for share, part in zip(t, p, strict=True)]))
        targets.append(sum(weight * problems.output(problem.experts, j, x) for j, weight in g.items()).numpy())
    return np.stack(rows), np.stack(targets)


@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("rule", [SOFTMAX, UNNORMALIZED, SIGMOID], ids=["softmax", "not normalized", "sigmoid"])
@pytest.mark.parametrize("routing", ["pruned", "folded"])
def test_behind_another_router_the_whole_layer_is_one_least_squares_against_the_original(routing, rule, biased):
    expert_map = (0, -1, 1, 2, -1, 3) if routing == "pruned" else (0, 0, 1, 2, 1, 3)
    problem, router = routed_problem(rule, expert_map, biased, tokens=400)
    problem = rerouted(problem, router, routing)
    found = merge(joint, problem, ridge=0.0)
    p, y = written_out(problem, problem.changed, [result.expert for result in found])
    expected = np.linalg.lstsq(p, y, rcond=None)[0].T
    downs = [result.expert.down[0] for result in found]
    if biased:
        downs = [torch.cat([d, r.expert.down_bias[0, :, None]], 1) for d, r in zip(downs, found, strict=True)]
    np.testing.assert_allclose(torch.cat(downs, 1).numpy(), expected, rtol=1e-6, atol=1e-7)


def test_pruning_deletes_rows_and_reap_nothing_else():
    problem, router = routed_problem(SOFTMAX, (0, -1, 1, 2, -1, 3))
    problem = rerouted(problem, router, "pruned")
    assert torch.equal(problem.changed.rows, router.rows[[0, 2, 3, 5]]) and reap.merge(problem) == []
    bias = torch.arange(6.0)
    assert pruned_router(replace(router, bias=bias), torch.tensor([1, 4])).bias.tolist() == [1, 4]


def test_a_router_that_does_not_follow_the_rule_of_its_family_is_refused():
    problem, router = routed_problem(SOFTMAX)
    check_rule(router, problem.reader.parts[False])
    with pytest.raises(UserError, match=r"[0-9.]+% of the\s+routing weight differs"):
        check_rule(replace(router, rule=UNNORMALIZED), problem.reader.parts[False])


@pytest.mark.parametrize("method", [reap, joint, unsolved], ids=["reap", "joint", "unsolved"])
def test_behind_a_pruned_router_an_order_of_neurons_for_each_expert_changes_nothing(method):
    problem, router = routed_problem(SOFTMAX, (0, -1, 1, 2, -1, 3))
    orders = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(e)) for e in range(6)])
    outputs = []
    for experts in (problem.experts, reordered(problem.experts, orders)):
        changed = rerouted(replace(problem, experts=experts), router, "pruned")
        merged = {result.group.number: result.expert for result in merge(method, changed)}
        shares, y = changed.shares(problem.reader.parts[True]), 0
        for place, group in enumerate(changed.groups):
            expert = merged.get(group.number, experts[group.members])
            x = problem.reader.parts[True].hidden
            y = y + shares[:, place, None] * torch.stack([problems.output(expert, 0, row) for row in x])
        outputs.append(y)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_the_most_salient_stay_equally_many_in_each_of_the_routers_groups():
    saliency = [5.0, 4.0, 3.0, 1.0, 2.0, 1.0]
    assert cluster.by_saliency(saliency, 3) == [0, 1, 2, -1, -1, -1]
    assert cluster.by_saliency(saliency, 4, router_groups=2) == [0, 1, -1, 2, 3, -1]
    assert cluster.by_saliency([1.0] * 4, 2) == [0, 1, -1, -1]


@pytest.mark.parametrize("most", [2, 3, 4])
def test_no_group_is_larger_than_max_size(most):
    similarity = torch.ones(8, 8, dtype=torch.float64)
    similarity[:, 0] = 2.0  # all would join the first
    found = cluster.by_similarity(similarity, [9, 8, 7, 6, 1, 1, 1, 1], 4, max_size=most)
    assert max(found.count(group) for group in range(4)) == most
    problem = problems.problem(expert_map=range(6))
    assert max(map(by_selection(problem, 3, 5, max_size=2).count, range(3))) == 2


@pytest.mark.parametrize(("kept", "most"), [(2, 3), (2, 4), (3, 2), (4, 2)])
def test_groups_that_a_size_allows_are_found(kept, most):
    found = by_selection(problems.problem(expert_map=range(6)), kept, 5, max_size=most)
    assert set(found) == set(range(kept)) and max(map(found.count, found)) <= most


def test_a_size_that_allows_no_groups_is_told():
    with pytest.raises(UserError, match="`max_size: 2` leaves 6 groups"):
        by_selection(problems.problem(expert_map=range(6)), 2, 5, max_size=2)
