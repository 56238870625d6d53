"""The T1 solution against the paper's literal formula, and the properties of the sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import merge

from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.errors import UserError
from mergemoe.merging import least_squares
from mergemoe.merging.least_squares import Moments, NormalEquations, solve_down
from mergemoe.methods import mergemoe
from mergemoe.moe.expert_forward import Activation, features
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem, groups_of

SILU = Activation("silu")


def moments(p, y, batches=1):
    total = Moments.zeros(p.shape[1], y.shape[1])
    for rows_p, rows_y in zip(p.chunk(batches), y.chunk(batches), strict=True):
        total.add(rows_p[None], rows_y[None], [0])
    total.complete()
    return total


def equations(sums):
    return NormalEquations(sums.gram[0], sums.cross[0], 0, torch.zeros(len(sums.gram[0])))


def solved(sums, penalty):
    return solve_down(equations(sums), penalty)


def literal(experts, members, weights, x):
    """W_D' T1 as the paper writes it: Q and P materialized, T1 = Q P^+ by numpy's pinv, float64."""
    x = x.double()
    wide = experts[members]
    mean = wide.map(lambda m: torch.einsum("c,cij->ij", weights, m.double())[None])
    # eqs. 5 and 6: one column per token
    p = features(x, mean, 0, SILU).numpy().T
    q = torch.cat([features(x, wide, c, SILU) for c in range(len(members))], dim=1).numpy().T
    stacked = torch.cat([w * wide.down[c].double() for c, w in enumerate(weights)], dim=1).numpy()
    t1 = q @ np.linalg.pinv(p)
    return stacked @ t1


class Kept:
    """Tokens in memory, read as a capture is: in chunks of 64, the whole of them fitted on."""

    def __init__(self, x):
        self.x = x

    def chunk_count(self):
        return None

    def chunks(self, heldout=False, device="cpu"):
        from mergemoe.moe.tokens import Tokens

        empty = torch.empty(0)
        return [Tokens(part, empty, empty, empty) for part in self.x.split(64)] if not heldout else []


def random_experts(gated, hidden_size=12, width=10, number=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    gate = draw(number, width, hidden_size) if gated else None
    return Experts(up=draw(number, width, hidden_size), down=draw(number, hidden_size, width), gate=gate)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "un-gated"])
@pytest.mark.parametrize("tokens", [500, 7], ids=["full rank", "fewer tokens than features"])
def test_mergemoe_is_the_papers_literal_formula_on_random_data(gated, tokens):
    # Features are computed in the dtype of x: in float64 nothing but the algebra differs.
    experts = random_experts(gated, dtype=torch.float64)
    x = torch.randn(tokens, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expert_map, usage = [0, 1, 0, 1, 0], [5, 1, 2, 0, 9]
    groups = groups_of(expert_map, usage)
    solved = merge(mergemoe, Problem(experts, groups, Kept(x), SILU))
    for group, result in zip(groups, solved, strict=True):
        expected = literal(experts, group.members, group.weights, x)
        assert relative(result.expert.down[0], expected) < 1e-6
        assert result.record["rank"] == min(tokens, 10)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "un-gated"])
@pytest.mark.parametrize("count", [None, 9], ids=["all tokens", "fewer tokens than features"])
def test_mergemoe_is_the_papers_literal_formula_on_captured_data(described, captured, layer, gated, count):
    from mergemoe.calibration.activation_file import Reader

    with Reader(captured[layer]) as reader:
        x = torch.cat([chunk.hidden for chunk in reader.chunks()])[:count].double()
    experts = read_experts(described, layer).map(lambda m: m.double())
    if not gated:
        experts = Experts(up=experts.up, down=experts.down)
    groups = groups_of([0, 0, 0, 1, 1, 2, 2, 2], [9, 3, 1, 0, 0, 4, 4, 1])
    solved = merge(mergemoe, Problem(experts, groups, Kept(x), SILU))
    for group, result in zip(groups, solved, strict=True):
        expected = literal(experts, group.members, group.weights, x)
        assert relative(result.expert.down[0], expected) < 1e-6


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def test_agrees_with_lstsq_when_no_exact_map_exists():
    generator = torch.Generator().manual_seed(0)
    p, y = (torch.randn(50, k, generator=generator, dtype=torch.float64) for k in (4, 6))
    expected, *_ = np.linalg.lstsq(p.numpy(), y.numpy(), rcond=None)
    sums = moments(p, y)
    solution = solved(sums, 0.0)
    np.testing.assert_allclose(solution.down.numpy().T, expected, rtol=1e-9)
    residual = ((p.numpy() @ expected - y.numpy()) ** 2).sum() / (y.numpy() ** 2).sum()
    assert sums.relative_errors(solution.down[None])[0] == pytest.approx(residual, rel=1e-9)


def test_a_penalty_is_that_of_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    p, y = (torch.randn(30, k, generator=generator, dtype=torch.float64).numpy() for k in (4, 3))
    expected = np.linalg.solve(p.T @ p + 2.5 * np.eye(4), p.T @ y).T
    found = solved(moments(torch.from_numpy(p), torch.from_numpy(y)), 2.5).down
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_the_ridge_of_mergemoe_has_the_unit_of_the_other_methods():
    experts = random_experts(gated=True, dtype=torch.float64)
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    groups = groups_of([0, 1, 0, 1, 0], [5, 1, 2, 0, 9])
    means = [experts[group.members].map(group.mean) for group in groups]
    merged = [features(x, mean, 0, SILU).numpy() for mean in means]
    median = np.quantile(np.concatenate([(p**2).sum(0) for p in merged]), 0.5, method="lower")
    for group, p, result in zip(
        groups, merged, merge(mergemoe, Problem(experts, groups, Kept(x), SILU), ridge=0.1), strict=True
    ):
        y = sum(
            w * (features(x, experts, j, SILU) @ experts.down[j].T).numpy()
            for w, j in zip(group.weights.tolist(), group.members, strict=True)
        )
        expected = np.linalg.solve(p.T @ p + 0.1 * median * np.eye(10), p.T @ y).T
        assert relative(result.expert.down[0], expected) < 1e-9


@given(batches=st.integers(1, 20), scale=st.floats(0.01, 100))
@settings(max_examples=30)
def test_batches_add_up_and_a_common_scale_changes_nothing(batches, scale):
    generator = torch.Generator().manual_seed(2)
    p, y = (torch.randn(40, k, generator=generator, dtype=torch.float64) for k in (5, 3))
    whole, parts = solved(moments(p, y), 0.0), solved(moments(p * scale, y * scale, batches), 0.0)
    torch.testing.assert_close(whole.down, parts.down, rtol=1e-8, atol=1e-10)
    assert (whole.rank, whole.effective_rank) == (parts.rank, pytest.approx(parts.effective_rank))


def test_recovers_a_map_that_is_exactly_linear_and_reports_no_error():
    p = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.arange(24, dtype=torch.float64).reshape(6, 4)
    sums = moments(p, p @ w.T)
    assert torch.allclose(solved(sums, 0.0).down, w)
    assert sums.relative_errors(solved(sums, 0.0).down[None])[0] < 1e-13


def test_rank_and_effective_rank_of_known_features():
    p = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])).double()
    solution = solved(moments(p, p), 0.0)
    assert solution.rank == 3
    assert solution.effective_rank == pytest.approx(3.0)
    assert solution.condition == pytest.approx(1.0)


def test_without_tokens_the_solution_is_zero():
    solution = solved(Moments.zeros(4, 3), 0.0)
    assert not solution.down.any()
    assert (solution.rank, solution.effective_rank, solution.condition) == (0, 0.0, None)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="penalty must be >= 0, got -1"):
        solved(Moments.zeros(2, 2), -1)
    bad = Moments.zeros(2, 2)
    bad.gram[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="sums over features and outputs of experts are NaN or infinite"):
        solved(bad, 0.0)


def test_sums_that_are_not_finite_are_not_a_perfect_error():
    bad = moments(torch.eye(3).double(), torch.eye(3).double())
    bad.gram[0, 0, 0] = float("nan")
    assert np.isnan(bad.relative_errors(torch.eye(3).double()[None])[0])


@pytest.mark.parametrize("width", [1, 5, 6, 7, 13])
def test_half_of_a_gram_matrix_is_computed_and_mirrored(width, monkeypatch):
    monkeypatch.setattr(least_squares, "BLOCK", 6)
    p = torch.randn(9, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    gram = torch.zeros(width, width, dtype=torch.float64)
    for rows in p.split(4):
        least_squares.add_lower(gram, rows)
    assert not gram.triu(6).any() and (width < 7 or not gram[:6, 6:].any())
    least_squares.mirror(gram)
    torch.testing.assert_close(gram, p.T @ p, rtol=1e-13, atol=1e-13)
    assert torch.equal(gram, gram.T)
