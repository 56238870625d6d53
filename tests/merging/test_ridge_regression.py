"""Routed and joint least squares, and the ridge toward a prior, against numpy's lstsq on the problem written out."""

from dataclasses import replace

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CASES, merge

from mergemoe.errors import UserError
from mergemoe.merging import feature_rules, ridge_regression
from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.layer_moments import layer_sums
from mergemoe.merging.least_squares import Moments
from mergemoe.methods import joint, mergemoe, routed
from mergemoe.moe.experts import down_of, joined


@pytest.fixture(params=CASES.values(), ids=CASES)
def problem(request):
    return problems.problem(**request.param)


def damped(p, y, w0, penalty):
    """argmin ||W P - Y||^2 + penalty ||W - W0||^2, by lstsq on the rows put below one another; W [H, P]."""
    stacked = np.vstack([p, np.sqrt(penalty) * np.eye(p.shape[1])])
    return np.linalg.lstsq(stacked, np.vstack([y, np.sqrt(penalty) * w0.T]), rcond=None)[0].T


def close(found, expected):
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)


def test_the_sums_are_those_of_a_loop_over_tokens(problem):
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    moments = group_sums(problem, problem.groups, joined(experts), heldout=False)
    for place, (group, expert) in enumerate(zip(problem.groups, experts, strict=True)):
        p, y = problems.written_out(problem, [expert], group.members)
        close(moments.gram[place], p.T @ p)
        close(moments.cross[place], y.T @ p)
        assert float(moments.energy[place]) == pytest.approx((y**2).sum())
        assert int(moments.tokens[place]) == len(p)
    p, y = problems.written_out(problem, experts)
    moments = layer_sums(problem, experts, heldout=False)
    close(moments.gram[0], p.T @ p)
    close(moments.cross[0], y.T @ p)
    assert float(moments.energy) == pytest.approx((y**2).sum())


@pytest.mark.parametrize("features", ["plain", "usage", "aligned"])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_routed_is_least_squares_of_each_group_on_its_own_tokens(problem, features, ridge):
    experts = feature_rules.merged_experts(problem, problem.merged_groups, features, 5)
    written = [
        problems.written_out(problem, [expert], group.members)
        for group, expert in zip(problem.merged_groups, experts, strict=True)
    ]
    scale = np.quantile(np.concatenate([(p**2).sum(0) for p, _ in written]), 0.5, method="lower")
    results = merge(routed, problem, features=features, ridge=ridge)
    assert [result.group.number for result in results] == [group.number for group in problem.merged_groups]
    for result, expert, (p, y) in zip(results, experts, written, strict=True):
        expected = damped(p, y, down_of(expert).numpy(), ridge * scale)
        close(down_of(result.expert), expected)
        error = ((p @ expected.T - y) ** 2).sum() / (y**2).sum()
        assert result.record["objective"]["fit"] == pytest.approx(error, rel=1e-6)
        assert torch.equal(result.expert.up, expert.up)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_joint_is_one_least_squares_of_the_layer(problem, ridge):
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    p, y = problems.written_out(problem, experts)
    w0 = torch.cat([down_of(expert) for expert in experts], 1).numpy()
    scale = np.quantile((p**2).sum(0), 0.5, method="lower")
    results = merge(joint, problem, ridge=ridge)
    close(torch.cat([down_of(result.expert) for result in results], 1), damped(p, y, w0, ridge * scale))


def test_a_group_that_no_token_reaches_keeps_its_prior():
    problem = problems.problem()
    for tokens in problem.reader.parts.values():
        away = torch.isin(tokens.index, torch.tensor([0, 1]))
        tokens.weight[away] = 0.0
    for ridge in (0.0, 0.1):
        for method in (routed, joint):
            result = next(r for r in merge(method, problem, ridge=ridge) if r.group.members == [0, 1])
            (expert,) = feature_rules.merged_experts(problem, [result.group], "usage", 5)
            close(down_of(result.expert), down_of(expert).numpy())


def test_auto_takes_the_lambda_with_the_least_error_on_held_out_tokens():
    problem = problems.problem(tokens=40, seed=1)
    results = merge(joint, problem, ridge="auto")
    tried = results[0].record["heldout_error_by_ridge"]
    assert [float(key) for key in tried] == list(ridge_regression.GRID)
    for ridge, error in tried.items():
        record = merge(joint, problem, ridge=float(ridge))[0].record
        assert record["objective"]["heldout"] == pytest.approx(error, rel=1e-9)
    assert tried[f"{results[0].record['ridge']:g}"] == min(tried.values())
    assert 1 < list(tried.values()).index(min(tried.values())) < len(tried)  # so it is a choice


def test_auto_without_held_out_tokens_says_what_to_turn():
    problem = problems.problem()
    problem.reader.parts[True] = problems.draw_tokens(0, 6, 7, 2, torch.Generator())
    with pytest.raises(UserError, match=r"set `holdout` of `calibrate`"):
        merge(joint, problem, ridge="auto")


def test_experts_that_no_held_out_token_reaches_stay_near_what_they_had(caplog):
    """A rare group of its own, beside experts that are used: a token held out reaches the layer, and not the group."""
    problem = problems.problem(expert_map=(0, 0, 1, 2, 3, 4))
    unused = problem.reader.parts[True]
    index = torch.tensor([[2, 3]]).expand_as(unused.index)
    problem.reader.parts[True] = replace(unused, index=index)
    (result,) = merge(routed, problem)
    assert result.record["ridge"] == max(ridge_regression.GRID) and "heldout_error_by_ridge" not in result.record
    assert "no held-out token reaches these experts" in caplog.text
    assert merge(joint, problem)[0].record["heldout_error_by_ridge"]  # the layer has some


def test_a_group_with_few_tokens_is_told_by_every_method(caplog):
    problem = problems.problem(expert_map=(0, 0, 1, 1, 2, 2), tokens=8, top_k=1)
    counts = torch.bincount(problem.reader.parts[False].index.flatten(), minlength=6).view(3, 2).sum(1).tolist()
    for method in (routed, joint, mergemoe):
        caplog.clear()
        records = [result.record for result in merge(method, problem, ridge=0.1)]
        expected = [sum(counts)] * 3 if method is mergemoe else counts
        assert [record["tokens"] for record in records] == expected
        assert [record["unknowns"] for record in records] == [5] * 3
        assert caplog.text.count("fewer than two per unknown") >= 3
    assert merge(joint, problem, ridge=0.1)[0].record["layer_tokens"] == sum(counts)


def test_a_penalty_below_rounding_is_none():
    problem = problems.problem(tokens=6)
    experts = joined(feature_rules.merged_experts(problem, problem.merged_groups, "usage", 5))
    moments = group_sums(problem, problem.merged_groups, experts, heldout=False)
    priors = torch.zeros_like(moments.cross)
    expected = ridge_regression.solve_toward_prior(moments, priors, 0.0)
    found = ridge_regression.solve_toward_prior(
        moments, priors, 1e-22 * ridge_regression.typical_energy(moments.gram.diagonal(dim1=1, dim2=2))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_thousandfold_feature_changes_the_penalty_of_no_other():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(200, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    ordinary, massive = Moments.zeros(9, 3), Moments.zeros(9, 3)
    ordinary.add(p[None], y[None], [0])
    massive.add(p[None] * torch.tensor([1000.0, *[1.0] * 8], dtype=torch.float64), y[None], [0])
    assert ridge_regression.typical_energy(massive.gram[0].diagonal()) == pytest.approx(
        ridge_regression.typical_energy(ordinary.gram[0].diagonal()), rel=0.2
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), tokens=st.integers(5, 120), ridge=st.sampled_from([0.0, 0.01, 1.0]))
def test_what_is_minimized_is_no_more_than_before(seed, tokens, ridge):
    """Penalized objectives over fitted tokens: joint <= routed <= the prior, where all have one penalty."""
    problem = problems.problem(tokens=tokens, seed=seed)
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    layer = layer_sums(problem, experts, heldout=False)
    parts = group_sums(problem, problem.groups, joined(experts), heldout=False)
    priors = torch.stack([down_of(expert) for expert in experts])
    w0 = torch.cat(tuple(priors), 1)[None]
    penalty = ridge * ridge_regression.typical_energy(layer.gram[0].diagonal())
    solved, whole = (
        ridge_regression.solve_toward_prior(parts, priors, penalty),
        ridge_regression.solve_toward_prior(layer, w0, penalty),
    )

    def objective(moments, w, w0):
        return moments.squared(w) + penalty * (w - w0).square().sum((1, 2))

    assert (objective(parts, solved, priors) <= objective(parts, priors, priors) * (1 + 1e-9) + 1e-9).all()
    by_group = torch.cat(tuple(solved), 1)[None]
    assert objective(layer, whole, w0) <= objective(layer, by_group, w0) * (1 + 1e-9) + 1e-9
