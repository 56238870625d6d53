"""Zipped neurons against a search that averages the features themselves, and what zipping must leave alone."""

from dataclasses import replace

import numpy as np
import problems
import pytest
import torch

from mergemoe.merging import neuron_selection
from mergemoe.merging.alignment import reordered
from mergemoe.merging.zipping import Spread, units, zipped_experts
from mergemoe.methods import zipit
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import groups_of
from mergemoe.moe.tokens import Tokens


def explicit(h, left):
    """Which neurons end together: the features h [n, P] of the units are averaged, and correlated anew at each step."""
    held = [[j] for j in range(h.shape[1])]
    while len(held) > left:
        means = np.stack([h[:, neurons].mean(1) for neurons in held], 1)
        correlation = np.corrcoef(means.T)
        pairs = [(a, b) for b in range(len(held)) for a in range(b)]
        a, b = max(pairs, key=lambda pair: correlation[pair])
        held[a] += held.pop(b)
    return held


def written_out(problem, group):
    """The expert of a group's units: a loop over units and neurons."""
    experts, members = problem.experts, group.members
    h = [
        np.concatenate([problems.features(experts, j, x).numpy() for j in members])
        for x, g in problems.each_token(problem)
        if set(members) & set(g)
    ]
    width = experts.up.shape[1]
    found = {role: torch.zeros_like(part[:1]) for role, part in experts.roles().items()}
    for k, neurons in enumerate(explicit(np.stack(h), width)):
        for expert, neuron in ((members[j // width], j % width) for j in neurons):
            for role in found.keys() - {"down", "down_bias"}:
                found[role][0, k] += experts.roles()[role][expert, neuron] / len(neurons)
            found["down"][0, :, k] += experts.down[expert, :, neuron] / len(members)
    if experts.down_bias is not None:
        found["down_bias"][0] = sum(experts.down_bias[j] for j in members) / len(members)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [{}, {"gated": False}, {"biased": True}], ids=["gated", "un-gated", "biases"])
def test_the_units_are_those_of_an_explicit_search_on_mean_features(case, seed):
    problem = problems.problem(expert_map=(0, 0, 1, 0, 1, 2), seed=seed, **case)
    results = zipit.merge(problem)
    assert [result.group for result in results] == problem.merged_groups
    for result in results:
        expected = written_out(problem, result.group)
        assert result.expert.roles().keys() == expected.keys()
        for role, matrices in result.expert.roles().items():
            torch.testing.assert_close(matrices, expected[role], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("neurons", "left"), [(40, 20), (60, 3), (30, 1)])
def test_what_a_step_looks_at_is_enough(neurons, left):
    h = np.random.default_rng(neurons).standard_normal((100, 6)) @ np.random.default_rng(0).standard_normal(
        (6, neurons)
    )
    unit = units(torch.from_numpy(np.cov(h.T)), left).tolist()
    assert [[j for j in range(neurons) if unit[j] == k] for k in range(left)] == list(map(sorted, explicit(h, left)))


def two_alike(**case):
    """A layer of two experts, the second being the first with its neurons in another order."""
    problem = problems.problem(expert_map=(0, 0), top_k=1, **case)
    once = problem.experts[[0, 0]]
    return replace(problem, experts=reordered(once, torch.tensor([[0, 1, 2, 3, 4], [3, 1, 4, 0, 2]])))


@pytest.mark.parametrize("case", [{}, {"gated": False}, {"biased": True}], ids=["gated", "un-gated", "biases"])
def test_two_equal_experts_in_another_order_give_that_expert(case):
    problem = two_alike(**case)
    (result,) = zipit.merge(problem)
    for role, matrices in result.expert.roles().items():
        torch.testing.assert_close(matrices, problem.experts.roles()[role][:1], rtol=1e-12, atol=1e-12)


def without_tokens(problem, kept):
    """The same layer, of whose first group only the first `kept` tokens are left."""
    tokens = problem.reader.parts[False]
    inside = torch.isin(tokens.index, torch.tensor(problem.groups[0].members)).any(1)
    rows = ~inside | (inside.cumsum(0) <= kept)
    left = Tokens(*(part[rows] for part in vars(tokens).values()))
    return replace(problem, reader=problems.Given(left, problem.reader.parts[True]))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_with_too_few_tokens_to_correlate_the_dominant_expert_stays_as_it_is(kept):
    problem = without_tokens(problems.problem(biased=True), kept)
    first, second = zipit.merge(problem)
    group = first.group
    dominant = problem.experts[[group.members[group.dominant]]]
    for role, matrices in first.expert.roles().items():
        assert torch.equal(matrices, dominant.roles()[role])
    expected = written_out(problem, second.group)
    torch.testing.assert_close(second.expert.down, expected["down"], rtol=1e-12, atol=1e-12)


def test_features_that_never_vary_go_with_any_other_by_zero():
    h = torch.tensor([[1.0, 5, 2, 5, 0], [2, 5, 1, 5, 0], [3, 5, 9, 5, 1], [0, 5, 9, 5, 0]], dtype=torch.float64)
    spread = Spread(5, h.device)
    spread.add(h[:0])
    spread.add(h[:2])
    spread.add(h[2:])
    covariance = spread.covariance().clone()
    torch.testing.assert_close(covariance, 4 * torch.from_numpy(np.cov(h.numpy().T, bias=True)), rtol=1e-13, atol=1e-13)
    assert not covariance[[1, 3]].any()
    # 0 and 4 first (.77), then the only pair left above 0 (.36), then the first of those at 0
    assert units(covariance.clone(), 4).tolist() == [0, 1, 2, 3, 0]
    assert units(covariance.clone(), 3).tolist() == [0, 1, 0, 2, 0]
    assert units(covariance.clone(), 2).tolist() == [0, 0, 0, 1, 0]


def test_passes_bound_what_is_held_and_change_nothing(monkeypatch):
    problem = problems.problem()
    expected = zipped_experts(problem, problem.merged_groups)
    monkeypatch.setattr(neuron_selection, "GRAM_BYTES", 1)
    assert [len(batch) for batch in neuron_selection.passes(problem, problem.merged_groups)] == [1, 1]
    for found, expert in zip(zipped_experts(problem, problem.merged_groups), expected, strict=True):
        assert torch.equal(found.up, expert.up) and torch.equal(found.down, expert.down)


def test_relu_neurons_that_never_fire_are_zipped_without_a_nan():
    problem = replace(problems.problem(gated=False), act=Activation("relu"))
    problem.experts.up[:, 0] = 0
    for expert in zipped_experts(problem, problem.merged_groups):
        assert all(part.isfinite().all() for part in expert.roles().values())


def test_a_group_of_one_is_that_expert():
    problem = problems.problem()
    (group,) = [g for g in groups_of([0, 1, 1, 1, 1, 1], [1] * 6) if len(g.members) == 1]
    (expert,) = zipped_experts(problem, [group])
    assert torch.equal(expert.up, problem.experts.up[:1]) and torch.equal(expert.down, problem.experts.down[:1])
