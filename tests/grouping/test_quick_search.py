"""The quick search for groups against every matching of a layer's sketch, written out."""

from dataclasses import replace

import problems
import pytest
import torch

from mergemoe.grouping.by_selection import by_selection
from mergemoe.grouping.costs import Costs
from mergemoe.grouping.quick_search import sketch
from mergemoe.moe import layer_sizes

CASES = {"gated": {}, "un-gated": {"gated": False}, "biases": {"biased": True}}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_sketch_has_the_strongest_neurons_and_few_outputs(case):
    problem = problems.problem(expert_map=range(6), width=9, hidden_size=8, **case)
    few = sketch(problem).experts
    assert few.up.shape == (6, 3, 8) and few.down.shape == (6, 2, 3)
    r = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double() / 2**0.5
    for j in range(6):
        up, down = problem.experts.up[j], problem.experts.down[j]
        strength = [float(up[i].square().sum() * down[:, i].square().sum()) for i in range(9)]
        best = sorted(sorted(range(9), key=lambda i: -strength[i])[:3])
        for x, _ in list(problems.each_token(problem))[:3]:
            features = problems.features(problem.experts, j, x)[best]
            bias = 0 if problem.experts.down_bias is None else problem.experts.down_bias[j]
            torch.testing.assert_close(problems.output(few, j, x), r @ (down[:, best] @ features + bias))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("width", [12, 5])
def test_pairs_are_the_cheapest_of_all_perfect_matchings_of_the_sketch(case, width):
    problem = problems.problem(expert_map=range(6), width=12, hidden_size=16, **case)
    few, counted = sketch(problem), {12: 3, 5: 2}[width]
    cost = {(i, j): problems.union_cost(few, (i, j), counted) for j in range(6) for i in range(j)}
    assert Costs(problem, 12, "quick").of_unions([((i,), (j,)) for i, j in cost], width) == pytest.approx(
        list(cost.values()),
        rel=1e-6,  # products in float32
    )
    cheapest = min(problems.perfect_matchings(range(6)), key=lambda pairs: sum(cost[pair] for pair in pairs))
    expert_map = by_selection(problem, 3, width, search="quick")
    assert all(expert_map[i] == expert_map[j] for i, j in cheapest)
    assert sorted(expert_map.count(group) for group in range(3)) == [2, 2, 2]


@pytest.mark.parametrize(("room", "passes"), [(1 << 31, 2), (0, 6)], ids=["kept", "computed"])
def test_tokens_are_read_for_every_union_only_if_features_have_no_room(room, passes, monkeypatch):
    """Once for the sums of single experts, and once for the features or for each of five experts with those before."""
    monkeypatch.setattr(layer_sizes, "FEATURE_BYTES", room)
    problem, read = problems.problem(expert_map=range(6), width=12, hidden_size=16), []
    chunks = problem.reader.chunks
    monkeypatch.setattr(problem.reader, "chunks", lambda *args, **options: read.append(1) or chunks(*args, **options))
    by_selection(problem, 3, 12, search="quick")
    assert len(read) == passes


def test_equal_experts_with_their_neurons_in_another_order_are_joined():
    problem = problems.problem(expert_map=range(6), width=12, hidden_size=16)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    experts = problem.experts.map(lambda matrices: matrices[[0, 1, 2, 2, 0, 1]])
    for j in (3, 4, 5):
        experts.up[j], experts.gate[j] = experts.up[j, order].clone(), experts.gate[j, order].clone()
        experts.down[j] = experts.down[j, :, order].clone()
    assert by_selection(replace(problem, experts=experts), 3, 12, search="quick") == [0, 1, 2, 2, 0, 1]


def test_beyond_pairs_costs_of_the_sketch_decide_too():
    problem = problems.problem(expert_map=range(6), width=12, hidden_size=16)
    few = sketch(problem)
    pairs = [(i, j) for j in range(6) for i in range(j)]
    i, j = min(pairs, key=lambda pair: problems.union_cost(few, pair, 3))
    expert_map = by_selection(problem, 5, 12, search="quick")
    assert expert_map[i] == expert_map[j] and sorted(set(expert_map)) == list(range(5))
