"""Mixtures of outputs: as long as what they mix, and good enough to choose a ridge by."""

import problems
import pytest
import torch
from problems import merge

from mergemoe.merging import output_mixtures
from mergemoe.methods import joint, routed


def test_they_keep_lengths_and_are_the_same_each_time():
    found = output_mixtures.mixtures(2048, "cpu")
    assert found.shape == (256, 2048) and torch.equal(found, output_mixtures.mixtures(2048, "cpu"))
    vectors = torch.randn(2048, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vectors[:4] *= 30  # massive channels
    shares = (found @ vectors).square().sum(0) / vectors.square().sum(0)
    assert shares.mean() == pytest.approx(1, abs=0.02) and shares.std() < 0.12


def test_as_many_outputs_as_mixtures_are_themselves():
    assert output_mixtures.mixtures(256, "cpu") is None


@pytest.mark.parametrize("method", [joint, routed])
def test_a_ridge_that_they_choose_is_near_the_best(method, monkeypatch):
    """The solution and its own error are those of all outputs; the others' errors are estimates."""
    excesses = []
    for seed in range(8):
        problem = problems.problem(hidden_size=64, tokens=60, seed=seed)
        whole = merge(method, problem)[0].record
        with monkeypatch.context() as patch:
            patch.setattr(output_mixtures, "MIXTURES", 16)
            found = merge(method, problem)
        record = found[0].record
        exact, estimates = whole["heldout_error_by_ridge"], record["heldout_error_by_ridge"]
        own = f"{record['ridge']:g}"
        assert estimates[own] == pytest.approx(exact[own], rel=1e-9) and min(estimates.values()) == estimates[own]
        excesses.append(exact[own] / min(exact.values()) - 1)
        given = merge(method, problem, ridge=record["ridge"])
        for mine, its in zip(found, given, strict=True):
            torch.testing.assert_close(mine.expert.down, its.expert.down, rtol=0, atol=0)
    assert max(excesses) < 0.02
