"""MergeMoE's sums against the problem written out, and what products in float32 do to the solution."""

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergemoe.merging import constant_moments
from mergemoe.merging.constant_moments import constant_sums
from mergemoe.merging.least_squares import solve_down
from mergemoe.methods import mergemoe
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.tokens import Tokens

CASES = {
    "gated": {},
    "un-gated": {"gated": False},
    "biases": {"biased": True},
    "one member of weight 0": {"expert_map": (0, 0, 0, 1, 1, 2), "top_k": 1, "tokens": 4},
    "many members": {"expert_map": (0,) * 6},
    "no tokens": {"tokens": 0},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("room", "rows"), [(1 << 28, 1 << 13), (1, 3)], ids=["whole", "in pieces"])
def test_the_sums_are_those_of_a_loop_over_tokens(case, room, rows, monkeypatch):
    for name, value in {"BYTES": room, "ROWS": rows}.items():
        monkeypatch.setattr(constant_moments, name, value)
    problem = problems.problem(**case)
    x = problem.reader.parts[False].hidden
    ones = np.ones((len(x), int(problem.experts.down_bias is not None)))
    found = list(constant_sums(problem, problem.groups))
    for group, sums in zip(problem.groups, found, strict=True):
        mean, p, y = problem.experts[group.members].map(group.mean), np.zeros((len(x), 5)), np.zeros((len(x), 7))
        for row, token in enumerate(x):
            p[row] = problems.features(mean, 0, token)
            for w, j in zip(group.weights.tolist(), group.members, strict=True):
                y[row] += w * problems.output(problem.experts, j, token).numpy()
        p = np.hstack([p, ones])
        for matrix, expected in ((sums.gram, p.T @ p), (sums.cross, y.T @ p)):
            assert np.linalg.norm(matrix.numpy() - expected) <= 1e-12 * np.linalg.norm(expected)
        assert sums.tokens == len(x) and (sums.spread >= 0).all()


def test_a_pass_reads_the_tokens_for_as_many_groups_as_have_room(monkeypatch):
    problem = problems.problem(expert_map=(0, 0, 1, 1, 2, 2))
    reads = []
    monkeypatch.setattr(Problem, "chunks", lambda self, heldout: reads.append(1) or self.reader.chunks(heldout))
    for groups, passes in ((3, 1), (2, 2), (1, 3)):
        monkeypatch.setattr(constant_moments, "BYTES", groups * 3 * 8 * 5**2)
        reads.clear()
        assert len(list(constant_sums(problem, problem.groups))) == 3 and len(reads) == passes


class Kept:
    """Fitted tokens in memory, in chunks of 1024."""

    def __init__(self, hidden):
        self.hidden = hidden

    def chunk_count(self):
        return None

    def chunks(self, heldout=False, device="cpu"):
        empty = torch.empty(0)
        return [Tokens(part, empty, empty, empty) for part in self.hidden.split(1024)]


def layer(seed, log_scale, alike, tokens, massive, width=48, hidden_size=64):
    """Two experts in float32 on tokens with `massive` channels and features that are nearly the same neuron's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    hidden = draw(tokens, hidden_size)
    hidden[:, :2] *= massive
    base = draw(1, width, hidden_size) * hidden_size**-0.5
    own = 10**-alike * draw(2, width, hidden_size) * hidden_size**-0.5
    up = base[:, :1] + 10**-alike * draw(1, width, hidden_size) * hidden_size**-0.5 + own  # neurons are alike, too
    scales = 10 ** (log_scale * torch.rand(width, generator=generator))
    experts = Experts(up=up * scales[:, None], gate=base + own, down=draw(2, hidden_size, width) * width**-0.5)
    return Problem(experts, groups_of([0, 0], [3, 2]), Kept(hidden), problems.SILU)


def squared(problem, down):
    """||W P - Y||^2 / ||Y||^2, token by token, in float64 on the float32 features."""
    (group,) = problem.groups
    members, p = constant_moments._GroupSums(problem, group, exact=True)._features(problem.reader.hidden)
    y = sum(
        w * h.double() @ problem.experts.down[j].double().T
        for w, j, h in zip(group.weights.tolist(), group.members, members, strict=True)
    )
    return float((p.double() @ down.T - y).square().sum() / y.square().sum())


HARD = {
    "seed": st.integers(0, 10**6),
    "log_scale": st.floats(0, 4),
    "alike": st.floats(0, 4),
    "tokens": st.sampled_from([60, 300, 4000]),
    "massive": st.sampled_from([1.0, 100.0, 1e4]),
}


@settings(max_examples=60)
@given(**HARD)
def test_products_in_float32_add_no_more_to_the_error_than_is_told(seed, log_scale, alike, tokens, massive):
    problem = layer(seed, log_scale, alike, tokens, massive)
    (quick,), (exact,) = (constant_sums(problem, problem.groups, exact) for exact in (False, True))
    found, best = solve_down(quick, 0.0), solve_down(exact, 0.0)
    added = squared(problem, found.down) - squared(problem, best.down)
    assert added <= found.excess + 1e-9
    assert torch.equal(quick.gram, exact.gram)


@settings(max_examples=40)
@given(**HARD)
def test_a_merge_exceeds_the_error_of_float64_by_a_millionth_at_most(seed, log_scale, alike, tokens, massive):
    problem = layer(seed, log_scale, alike, tokens, massive)
    (merged,) = mergemoe.merge(problem, ridge=0.0)
    (exact,) = constant_sums(problem, problem.groups, exact=True)
    added = squared(problem, merged.expert.down[0]) - squared(problem, solve_down(exact, 0.0).down)
    assert added <= mergemoe.EXCESS


def test_where_float32_is_not_enough_the_products_are_taken_again(monkeypatch):
    hard, easy = layer(220810, 0.6, 4.3, 60, 1e4), layer(0, 0.0, 0.0, 4000, 1.0)
    asked = []
    sums = constant_moments.constant_sums
    monkeypatch.setattr(
        mergemoe, "constant_sums", lambda *args, **how: asked.append((len(args[1]), how)) or sums(*args, **how)
    )
    for problem, again in ((hard, 1), (easy, 0)):
        asked.clear()
        mergemoe.merge(problem, ridge=0.0)
        assert asked == [(1, {}), (again, {"exact": True})]
    (quick,), (exact,) = (sums(hard, hard.groups, exact) for exact in (False, True))
    added = squared(hard, solve_down(quick, 0.0).down) - squared(hard, solve_down(exact, 0.0).down)
    assert added > mergemoe.EXCESS  # so the second time is needed
