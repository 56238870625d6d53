"""Many least squares at once against each by itself, and against numpy on the problem written out."""

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergemoe.grouping import costs, union_moments
from mergemoe.grouping.expert_features import ExpertFeatures
from mergemoe.merging import averaging, group_moments, neuron_selection, ridge_regression
from mergemoe.merging.least_squares import Moments, NormalEquations, solve_down
from mergemoe.moe import layer_sizes
from mergemoe.moe.experts import joined


@settings(max_examples=50)
@given(counts=st.lists(st.integers(0, 40), max_size=12), slots=st.integers(1, 200))
def test_every_token_is_in_one_slot_and_few_slots_are_padded(counts, slots):
    generator = torch.Generator().manual_seed(len(counts))
    used = torch.stack([torch.zeros(40), *(torch.zeros(40) for _ in counts)], 1).bool()
    for column, count in enumerate(counts):
        used[torch.randperm(40, generator=generator)[:count], column] = True
    found = torch.zeros_like(used, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_moments, "SLOTS", slots)
        for batch in group_moments.batches(used):
            assert len(batch.which) == 1 or batch.rows.numel() <= slots
            assert (~batch.real).sum() <= group_moments.PADDING * batch.real.numel()
            for column, rows, real in zip(batch.which, batch.rows, batch.real, strict=True):
                found[rows[real], column] += 1
                assert used[rows, column].all()  # padded by tokens of its own, where its features are finite
    assert torch.equal(found, used.long())


@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
@pytest.mark.parametrize(("slots", "padding"), [(1, 0.0), (1 << 13, 1.0)], ids=["one by one", "all at once"])
def test_how_groups_are_batched_changes_no_sum(biased, slots, padding, monkeypatch):
    monkeypatch.setattr(group_moments, "SLOTS", slots)
    monkeypatch.setattr(group_moments, "PADDING", padding)
    problem = problems.problem(biased=biased)
    experts = averaging.usage_mean(problem, problem.groups)
    found = group_moments.group_sums(problem, problem.groups, joined(experts), heldout=False)
    for place, (group, expert) in enumerate(zip(problem.groups, experts, strict=True)):
        p, y = problems.written_out(problem, [expert], group.members)
        for matrix, expected in ((found.gram, p.T @ p), (found.cross, y.T @ p), (found.energy, (y**2).sum())):
            error = np.linalg.norm(matrix[place].numpy() - expected)
            assert error <= 1e-12 * np.linalg.norm(expected)
        assert int(found.tokens[place]) == len(p)


def test_the_sums_repeat_to_the_bit():
    problem = problems.problem()
    pools = joined([neuron_selection.pool(problem, group) for group in problem.merged_groups])
    one, other = (group_moments.group_sums(problem, problem.merged_groups, pools, heldout=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def random_moments(stack, width, hidden_size, tokens):
    generator = torch.Generator().manual_seed(0)
    total = Moments.zeros(width, hidden_size, stack=stack)
    p, y = (torch.randn(stack, tokens, k, generator=generator, dtype=torch.float64) for k in (width, hidden_size))
    total.add(p, y, range(stack))
    total.complete()
    return total, p.numpy(), y.numpy()


@pytest.mark.parametrize("tokens", [30, 4], ids=["full rank", "fewer tokens than features"])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_each_solution_of_a_stack_is_its_own(tokens, penalty):
    moments, p, y = random_moments(3, 6, 5, tokens)
    w0 = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = ridge_regression.solve_toward_prior(moments, w0, penalty)
    for place in range(3):
        stacked = np.vstack([p[place], np.sqrt(penalty) * np.eye(6)])
        missing = np.vstack([y[place] - p[place] @ w0[place].numpy().T, np.zeros((6, 5))])
        expected = w0[place].numpy().T + np.linalg.lstsq(stacked, missing, rcond=None)[0]
        np.testing.assert_allclose(found[place].numpy().T, expected, rtol=1e-8, atol=1e-10)
    for place in range(3):
        solution = solve_down(NormalEquations(moments.gram[place], moments.cross[place], tokens, torch.zeros(6)), 0.0)
        expected = np.linalg.lstsq(p[place], y[place], rcond=None)[0]
        np.testing.assert_allclose(solution.down.numpy().T, expected, rtol=1e-8, atol=1e-10)
        assert solution.rank == min(tokens, 6)


def test_one_without_tokens_has_no_error_beside_those_that_have():
    moments, p, y = random_moments(3, 6, 5, 30)
    moments.gram[0], moments.cross[0], moments.energy[0] = 0, 0, 0
    w = torch.ones(3, 5, 6, dtype=torch.float64)
    none, *errors = moments.relative_errors(w)
    assert none is None
    for error, p_own, y_own in zip(errors, p[1:], y[1:], strict=True):
        assert error == pytest.approx(((p_own @ np.ones((6, 5)) - y_own) ** 2).sum() / (y_own**2).sum(), rel=1e-12)


UNIONS = {
    "pairs": ((0,), [(1,), (4,), (5,)]),
    "of several": ((2, 0), [(1, 3), (5, 4)]),
    "one with several": ((3,), [(0, 1), (2, 5)]),
}


@pytest.mark.parametrize(("one", "others"), UNIONS.values(), ids=UNIONS)
@pytest.mark.parametrize("case", [{}, {"gated": False}, {"biased": True}], ids=["gated", "un-gated", "biases"])
@pytest.mark.parametrize("room", [1 << 31, 0], ids=["kept", "computed"])
def test_the_sums_of_unions_are_those_of_a_loop_over_tokens(room, case, one, others, monkeypatch):
    monkeypatch.setattr(layer_sizes, "FEATURE_BYTES", room)
    problem = problems.problem(expert_map=range(6), top_k=3, **case)
    one, others = costs._group(one), [costs._group(other) for other in others]
    own, theirs = (
        group_moments.group_sums(
            problem, part, joined([neuron_selection.pool(problem, group) for group in part]), heldout=False
        )
        for part in ([one], others)
    )
    experts = ExpertFeatures(problem)
    for _ in range(2):  # the second time features are kept already
        found = union_moments.union_sums(problem, experts, one, others, own, theirs)
    for place, other in enumerate(others):
        union = costs._group((*other.members, *one.members))
        local = type(problem)(problem.experts, [union], problem.reader, problem.act)
        p, y = problems.written_out(local, [neuron_selection.pool(problem, union)], union.members)
        for matrix, expected in ((found.gram, p.T @ p), (found.cross, y.T @ p), (found.energy, (y**2).sum())):
            assert np.linalg.norm(matrix[place].numpy() - expected) <= 1e-12 * np.linalg.norm(expected)
        assert int(found.tokens[place]) == len(p)
