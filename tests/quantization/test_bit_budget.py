"""A budget of bits is spent where it saves most; costs are the outputs' own, token by token."""

import itertools

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.methods import average
from mergemoe.moe.solved import compact_experts, solved_tensors
from mergemoe.quantization.bit_budget import cheapest_steps, rounding_costs, spent_bits
from mergemoe.quantization.grids import fitted_grid
from mergemoe.quantization.options import weight_bits
from mergemoe.quantization.quantize import quantize

SHAPES = {"gated": {}, "un-gated": {"gated": False}, "biases": {"biased": True}}


@pytest.fixture(params=SHAPES)
def layer(request):
    return problems.problem(hidden_size=16, width=16, **SHAPES[request.param])


def solved_of(layer):
    expert_map = [0, 0, 1, 2, 1, 3]
    return solved_tensors(layer.experts, expert_map, average.merge(layer))


def roles_of(experts):
    return [role for role in ("gate", "up", "down") if role in experts.roles()]


def one_rounded(experts, expert, role, bits):
    """The experts with one matrix at the nearest values of its grids, 8 weights each."""
    roles = {name: part.clone() for name, part in experts.roles().items()}
    rows = roles[role][expert].double().reshape(-1, 8)
    roles[role][expert] = fitted_grid(rows, bits).nearest(rows).view_as(roles[role][expert])
    return type(experts)(**roles, norm=experts.norm)


def test_the_cost_of_a_matrix_is_the_error_of_the_weighted_output_with_it_alone_rounded(layer):
    experts = compact_experts(layer.experts.map(torch.Tensor.float), solved_of(layer))
    roles, group_of = roles_of(experts), [0, 0, 1, 2, 1, 3]
    found = rounding_costs(layer, experts, roles, (2, 4), group=8)
    for expert, (place, role), (option, bits) in itertools.product((0, 3), enumerate(roles), enumerate((2, 4))):
        other, cost = one_rounded(experts, expert, role, bits), 0.0
        for x, chosen in problems.each_token(layer):
            t = sum(weight for j, weight in chosen.items() if group_of[j] == expert)
            if t:
                apart = problems.output(other, expert, x.float()) - problems.output(experts, expert, x.float())
                cost += float(t * t * apart.double().square().sum())
        assert float(found[expert, place, option]) == pytest.approx(cost, rel=1e-4)


@given(
    drops=st.lists(st.lists(st.floats(0, 9), min_size=2, max_size=2), min_size=1, max_size=5), budget=st.integers(0, 12)
)
def test_steps_are_the_cheapest_of_all_if_costs_are_convex(drops, budget):
    saved = torch.tensor([sorted(each, reverse=True) for each in drops], dtype=torch.float64)
    costs = 20 - torch.cat([torch.zeros(len(saved), 1, dtype=torch.float64), saved.cumsum(1)], 1)
    steps = cheapest_steps(costs, budget)
    assert steps.sum() == min(budget, saved.numel()) and steps.min() >= 0 and steps.max() <= 2
    ways = itertools.product(range(3), repeat=len(costs))
    least = min(sum(float(row[s]) for row, s in zip(costs, way, strict=True)) for way in ways if sum(way) <= budget)
    assert sum(float(row[s]) for row, s in zip(costs, steps.tolist(), strict=True)) == pytest.approx(least)


def test_a_step_that_saves_nothing_may_stand_before_one_that_saves_much():
    assert cheapest_steps(torch.tensor([[5.0, 5.0, 0.0], [5.0, 4.0, 3.0]]), 2).tolist() == [0, 2]


@pytest.mark.parametrize("mean", [2.25, 2.5, 3.3, 7.5])
def test_bits_have_the_mean_and_lie_around_it(layer, mean):
    experts = compact_experts(layer.experts.map(torch.Tensor.float), solved_of(layer))
    bits = torch.stack([*spent_bits(layer, experts, roles_of(experts), mean, 8).values()])
    assert mean - 1 / bits.numel() < bits.double().mean() <= mean
    assert bits.min() >= max(2, int(mean) - 1) and bits.max() <= min(8, int(mean) + 2)


@pytest.mark.parametrize("by", ["gptq", "descent"])
def test_a_layer_of_mixed_bits_has_as_many_values_as_its_bits_and_the_bytes_of_their_mean(layer, by):
    options = {"bits": 2.5, "group": 8, "damping": 0.01}
    descent = {"steps": 5, "batch": 64, "rate": 0.05, "seed": 0, "dtype": "float32", "targets": "kept"}
    more = descent if by == "descent" else {}
    solved = solved_of(layer)
    found, record = quantize(layer.experts, solved, layer.reader, layer.act, by=by, **options, **more)
    numbers = 0
    for role in roles_of(layer.experts):
        for expert, bits in enumerate(found[f"{role}_bits"].tolist()):
            groups = found[role][expert].reshape(-1, 8)
            scale, zero = (found[f"{role}_{part}"][expert].reshape(-1, 1).float() for part in ("scale", "zero"))
            steps = groups / scale + zero
            torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
            assert steps.min() > -0.5 and steps.max() < 2**bits - 0.5
            numbers += groups.numel() * (bits + (16 + bits) / 8) / 8
    biases = sum(part.numel() for role, part in found.items() if role.endswith("_bias")) * 8
    assert record["bytes"] == int(numbers) + biases and record["bits"] <= weight_bits({"by": by, **options})
    errors = {
        bits: quantize(layer.experts, solved, layer.reader, layer.act, by="gptq", **{**options, "bits": bits})[1]
        for bits in (2, 3)
    }
    low, high = (errors[bits]["output_error"]["fit"] for bits in (3, 2))
    assert low < record["output_error"]["fit"] < high
