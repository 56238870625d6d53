"""Tokens and targets that are copied once and read in any order."""

import errno
import itertools

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import routed_output
from mergemoe.reconstruction import kept_tokens
from mergemoe.reconstruction.kept_tokens import KeptTokens, batch_rows


@pytest.mark.parametrize("targets", ["kept", "recomputed"])
@pytest.mark.parametrize("heldout", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_every_row_is_there_with_its_target(tmp_path, targets, heldout, mapped):
    problem = problems.problem()
    whole = problem.reader.parts[heldout]
    y = routed_output(whole.hidden, whole.index, whole.weight, problem.experts, problem.act)
    kept = KeptTokens(problem, heldout, tmp_path if mapped else None, targets)
    assert list(tmp_path.iterdir()) == []  # its files have no name
    rows = torch.tensor([3, 0, 17, 31, 8])
    tokens, target = kept.read(rows)
    for name in ("hidden", "index", "weight"):
        assert torch.equal(getattr(tokens, name), getattr(whole, name)[rows])
    torch.testing.assert_close(target, y[rows], rtol=1e-12, atol=1e-12)
    assert kept.count == len(y)
    assert kept.energy == pytest.approx(float(y.square().sum() / len(y)), rel=1e-12)


def test_the_error_is_relative_to_the_energy(monkeypatch):
    monkeypatch.setattr(kept_tokens, "ROWS", 7)
    problem = problems.problem()
    whole = problem.reader.parts[True]
    y = routed_output(whole.hidden, whole.index, whole.weight, problem.experts, problem.act)
    expected = float((whole.hidden - y).square().sum() / y.square().sum())
    kept = KeptTokens(problem, heldout=True, folder=None, targets="kept")
    assert kept.error(lambda tokens: tokens.hidden) == pytest.approx(expected, rel=1e-12)
    parts = kept.errors(lambda tokens: tokens.hidden)
    by_hand = [((whole.hidden - y)[row : row + 2].square().sum() / y.square().sum()).item() for row in range(0, 40, 2)]
    assert parts.tolist() == pytest.approx(by_hand, rel=1e-12)  # two tokens make a sequence


@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3), skip=st.integers(0, 60))
def test_each_pass_draws_a_row_once_and_a_later_start_draws_the_same(count, batch, seed, skip):
    first = list(itertools.islice(batch_rows(count, batch, seed, 0), skip + 5))
    in_pass = count // min(batch, count)
    for start in range(0, len(first) - in_pass + 1, in_pass):
        rows = torch.cat(first[start : start + in_pass])
        assert len(rows) == len(rows.unique()) == in_pass * min(batch, count)
    later = list(itertools.islice(batch_rows(count, batch, seed, skip), 5))
    assert all(torch.equal(a, b) for a, b in zip(first[skip:], later, strict=True))


def test_passes_and_seeds_have_orders_of_their_own():
    (one, two), (other, _) = (list(itertools.islice(batch_rows(20, 10, seed, 0), 4))[::2] for seed in (0, 1))
    assert not torch.equal(one, two) and not torch.equal(one, other)


def test_a_disk_that_is_full_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_tokens.os, "posix_fallocate", full)
    monkeypatch.setattr(kept_tokens, "routed_output", None)
    with pytest.raises(OSError, match="No space left"):
        KeptTokens(problems.problem(), heldout=False, folder=tmp_path, targets="kept")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_are_refused():
    problem = problems.problem()
    problem.reader.parts[False].hidden[3, 0] = torch.nan
    with pytest.raises(UserError, match="mean square of nan: .* NaN, infinite or too large"):
        KeptTokens(problem, heldout=False, folder=None, targets="kept")
