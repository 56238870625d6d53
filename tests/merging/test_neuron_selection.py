"""Selected neurons against an explicit greedy search, slim experts, and groups by selection cost."""

import itertools

import problems
import pytest
import torch
from problems import best_columns, left_over, merge

from mergemoe.grouping import by_selection, costs
from mergemoe.merging import neuron_selection
from mergemoe.merging.group_moments import group_sums
from mergemoe.methods import select
from mergemoe.moe.experts import joined


@pytest.mark.parametrize("panel", [1, 3, 32])
@pytest.mark.parametrize("case", [{}, {"gated": False}, {"biased": True}], ids=["gated", "un-gated", "biases"])
def test_the_neurons_are_those_of_an_explicit_greedy_search(case, panel, monkeypatch):
    monkeypatch.setattr(neuron_selection, "PANEL", panel)
    problem = problems.problem(**case)
    for group in problem.merged_groups:
        pool = neuron_selection.pool(problem, group)
        p, y = problems.written_out(problem, [pool], group.members)
        neurons = pool.up.shape[1]
        (found,), (errors,) = neuron_selection.best_neurons(
            group_sums(problem, [group], pool, heldout=False), pool.down, 5
        )
        always = range(neurons, p.shape[1])
        assert found.tolist() == best_columns(p, y, 5, always)
        expected = [left_over(p[:, [*best_columns(p, y, width, always), *always]], y) for width in range(1, 6)]
        assert errors.tolist() == pytest.approx(expected, rel=1e-8)


def test_a_pool_computes_what_its_members_do_side_by_side():
    problem = problems.problem(biased=True)
    group = problem.merged_groups[0]
    pool = neuron_selection.pool(problem, group)
    for x, _ in itertools.islice(problems.each_token(problem), 5):
        members = torch.cat([problems.features(problem.experts, j, x) for j in group.members])
        torch.testing.assert_close(problems.features(pool, 0, x), members, rtol=1e-12, atol=1e-12)
        down = torch.cat([problem.experts.down[j] for j in group.members], 1)
        assert torch.equal(pool.down[0], down)


def test_a_group_of_one_at_full_width_is_that_expert_to_the_bit():
    problem = problems.problem()
    for group, expert in zip(
        problem.groups, neuron_selection.selected_experts(problem, problem.groups, 5), strict=True
    ):
        if len(group.members) == 1:
            for role, matrices in problem.experts[group.members].roles().items():
                assert torch.equal(expert.roles()[role], matrices)


def test_neurons_without_a_residual_left_are_taken_by_energy():
    problem = problems.problem(expert_map=(0, 0), top_k=1, tokens=3, seed=1)  # 3 tokens, 10 neurons: 3 explain all
    problem.experts.down[0, :, 0] = 0.0  # the first neuron is the last choice, and taken by no mistake
    group, pool = problem.groups[0], neuron_selection.pool(problem, problem.groups[0])
    moments = group_sums(problem, [group], pool, heldout=False)
    (first,), _ = neuron_selection.best_neurons(moments, pool.down, 3)
    (found,), (errors,) = neuron_selection.best_neurons(moments, pool.down, 5)
    assert (errors[2:] < 1e-9 * moments.energy).all() and errors[1] > 1e-6 * moments.energy
    energy = moments.gram[0].diagonal() * pool.down[0].square().sum(0)
    rest = [j for j in energy.argsort(descending=True).tolist() if j not in first.tolist()]
    assert set(found.tolist()) == {*first.tolist(), *rest[:2]} and 0 not in found


@pytest.mark.parametrize("panel", [1, 2, 32])
def test_a_pool_that_runs_out_stops_beside_one_that_goes_on(panel, monkeypatch):
    monkeypatch.setattr(neuron_selection, "PANEL", panel)
    problem = problems.problem(expert_map=(0, 0, 1, 1), top_k=1)
    pools = [neuron_selection.pool(problem, group) for group in problem.groups]
    moments = group_sums(problem, problem.groups, joined(pools), heldout=False)
    few = group_sums(problems.problem(expert_map=(0, 0), top_k=1, tokens=3), problem.groups[:1], pools[0], False)
    for all_of, some in zip(vars(moments).values(), vars(few).values(), strict=True):
        all_of[0] = some[0]
    found, errors = neuron_selection.best_neurons(moments, joined(pools).down, 6)
    for place, sums in enumerate((few, group_sums(problem, problem.groups[1:], pools[1], False))):
        (neurons,), (alone,) = neuron_selection.best_neurons(sums, pools[place].down, 6)
        assert torch.equal(found[place], neurons)
        torch.testing.assert_close(errors[place], alone, rtol=1e-9, atol=1e-12)
    assert errors[0, -1] < 1e-9 * moments.energy[0] < errors[1, -1]


def test_slim_experts_keep_their_own_neurons():
    problem = problems.problem(expert_map=range(6))
    results = merge(select, problem, width=0.4, ridge=0.1)
    for expert, result in enumerate(results):
        assert result.expert.up.shape == (1, 2, 7) and result.expert.down.shape == (1, 7, 2)
        for row in result.expert.up[0]:
            assert (row == problem.experts.up[expert]).all(1).any()


def cost(problem, members, width=5):
    return problems.union_cost(problem, members, width)


def test_pairs_are_the_cheapest_of_all_perfect_matchings():
    problem = problems.problem(expert_map=range(6))
    matchings = list(problems.perfect_matchings(range(6)))
    assert len(matchings) == 15
    cheapest = min(matchings, key=lambda pairs: sum(cost(problem, pair) for pair in pairs))
    expert_map = by_selection.by_selection(problem, kept=3, width=5)
    found = [tuple(j for j, group in enumerate(expert_map) if group == number) for number in range(3)]
    assert sorted(found) == sorted(cheapest)


def test_beyond_pairs_the_cheapest_union_is_joined():
    problem = problems.problem(expert_map=range(6))
    expert_map = by_selection.by_selection(problem, kept=5, width=5)
    pairs = list(itertools.combinations(range(6), 2))
    cheapest = min(pairs, key=lambda pair: cost(problem, pair))
    assert [j for j in range(6) if expert_map.count(expert_map[j]) == 2] == list(cheapest)
    assert sorted(set(expert_map)) == list(range(5))


def test_the_costs_are_those_written_out_whatever_the_sizes():
    problem = problems.problem(expert_map=range(6))
    all_costs = costs.Costs(problem, 5)
    pairs, groups = [((0, 3), (1, 2)), ((4,), (1, 2)), ((1, 2), (5,)), ((4,), (5,))], [(0, 3), (1, 2), (4, 5)]
    for width in (5, 2):  # the second from what the first found
        expected = [cost(problem, tuple(sorted(one + other)), width) for one, other in pairs]
        assert all_costs.of_unions(pairs, width) == pytest.approx(expected, rel=1e-8)
        assert all_costs.of_groups(groups, width) == pytest.approx(
            [cost(problem, members, width) for members in groups]
        )


def test_groups_of_several_sizes_are_those_of_each_size_alone():
    problem = problems.problem(expert_map=range(6))
    all_costs = costs.Costs(problem, 5)
    for kept, width in [(3, 5), (4, 3), (2, 2), (5, 4), (3, 1)]:
        assert by_selection.by_selection(problem, kept, width, costs=all_costs) == by_selection.by_selection(
            problem, kept, width
        )
