"""One layer's merge: groups, methods, what is kept, and its error against a loop over tokens."""

import pytest
import torch
from problems import merge

from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.merging.solve import solve, untouched
from mergemoe.methods import average, catalogue, mergemoe
from mergemoe.moe.expert_forward import Activation, features, output
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.solved import compact_experts, output_error

SILU = Activation("silu")
MAP, USAGE = [0, 0, 1, 2, 2, 2, 3, 1], [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def experts(described):
    return read_experts(described, 1)


def single(experts):
    return experts.map(lambda m: m.float())


@pytest.mark.parametrize("heldout", [False, True])
def test_the_output_error_is_that_of_a_loop_over_tokens(experts, reader, heldout):
    working = single(experts)
    compact = working[[1, 3, 5, 6]]
    squared = energy = 0.0
    tokens = 0
    for chunk in reader.chunks(heldout=heldout):
        for x, index, weight in zip(chunk.hidden, chunk.index.tolist(), chunk.weight.tolist(), strict=True):
            x = x[None].double()
            y = sum(g * output(x, working, e, SILU) for e, g in zip(index, weight, strict=True))
            z = sum(g * output(x, compact, MAP[e], SILU) for e, g in zip(index, weight, strict=True))
            squared += float((z - y).square().sum())
            energy += float(y.square().sum())
            tokens += 1
    assert tokens == reader.count(heldout=heldout) > 0
    shares = Problem(working, groups_of(MAP, USAGE), reader, SILU).shares
    found = output_error(working, compact, shares, reader, SILU, heldout=heldout)
    assert found == pytest.approx(squared / energy, rel=1e-5)
    assert found > 0.01


def test_weights_of_a_group_are_shares_of_usage_or_equal_without_any():
    first, second = groups_of([0, 0, 1, 1], [3, 1, 0, 0])
    assert (first.number, first.members, first.weights.tolist()) == (0, [0, 1], [0.75, 0.25])
    assert (second.number, second.members, second.weights.tolist()) == (1, [2, 3], [0.5, 0.5])


def test_groups_come_in_the_order_of_their_numbers_with_those_of_several_named():
    groups = groups_of([0, 1, 0, 2], [1, 1, 1, 1])
    assert [(group.number, group.members) for group in groups] == [(0, [0, 2]), (1, [1]), (2, [3])]
    assert Problem(None, groups, None, SILU).merged_groups == groups[:1]


def test_average_is_the_plain_mean_of_the_three_matrices(experts, reader):
    working = single(experts)
    groups = [group for group in groups_of(MAP, USAGE) if len(group.members) == 3]
    (merged,) = average.merge(Problem(working, groups, reader, SILU))
    for role, matrices in merged.expert.roles().items():
        members = working.roles()[role][[3, 4, 5]].double()
        assert matrices.dtype == torch.float64
        assert torch.equal(matrices, members.mean(0, keepdim=True))
        torch.testing.assert_close(matrices[0], (members[0] + members[1] + members[2]) / 3, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("method", ["average", "mergemoe"])
def test_only_groups_of_several_are_solved_and_recorded(experts, reader, method):
    tensors, record = solve(experts, MAP, USAGE, reader, SILU, method=method, **catalogue.complete(method, {}))
    assert tensors["groups"].tolist() == [0, 1, 2]
    assert tensors["expert_map"].tolist() == MAP
    for role, like in experts.roles().items():
        assert tensors[role].dtype == torch.bfloat16
        assert tensors[role].shape == (3, *like.shape[1:])
    assert (record["method"], record["experts"], record["kept"], record["width"]) == (method, 8, 4, 24)
    assert record["tokens"] == {"fit": reader.count(), "heldout": reader.count(heldout=True)}
    assert [group["members"] for group in record["groups"]] == [[0, 1], [2, 7], [3, 4, 5]]
    compact = compact_experts(single(experts), tensors)
    shares = Problem(single(experts), groups_of(MAP, USAGE), reader, SILU).shares
    for part, error in record["output_error"].items():
        assert error == output_error(single(experts), compact, shares, reader, SILU, heldout=part == "heldout")


def test_the_compact_experts_are_the_solved_ones_and_the_others_as_they_were(experts, reader):
    tensors, _ = solve(experts, MAP, USAGE, reader, SILU, method="average")
    compact = compact_experts(experts, tensors)
    assert isinstance(compact, Experts)
    for role, matrices in compact.roles().items():
        assert torch.equal(matrices[:3], tensors[role])
        assert torch.equal(matrices[3], experts.roles()[role][6])


def test_nothing_to_merge_costs_nothing(experts, reader):
    tensors, record = solve(experts, list(range(8)), USAGE, reader, SILU, method="mergemoe", ridge=0.0)
    assert tensors["groups"].tolist() == []
    assert all(len(tensors[role]) == 0 for role in experts.roles())
    assert record["output_error"] == {"fit": 0, "heldout": 0}
    assert record["groups"] == []


def test_an_untouched_layer_gives_what_a_method_without_groups_gives(experts, reader):
    expected, its = solve(experts, list(range(8)), USAGE, reader, SILU, method="average")
    tensors, record = untouched(experts, reader)
    assert record == its | {"method": None}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_least_squares_is_no_worse_than_the_averaged_down_projection(experts, reader):
    problem = Problem(single(experts), groups_of(MAP, USAGE), reader, SILU)
    averaged = [problem.experts[group.members].map(group.mean) for group in problem.merged_groups]
    x = torch.cat([tokens.hidden for tokens in reader.chunks()])
    for merged, expert in zip(merge(mergemoe, problem), averaged, strict=True):
        assert torch.equal(merged.expert.up, expert.up)
        assert torch.equal(merged.expert.gate, expert.gate)
        members = zip(merged.group.weights.tolist(), merged.group.members, strict=True)
        y = sum(w * output(x, problem.experts, j, SILU).double() for w, j in members)
        p = features(x, expert.map(torch.Tensor.float), 0, SILU).double()
        after, before = (float((p @ down_of(one).T - y).square().sum()) for one in (merged.expert, expert))
        assert after < before
