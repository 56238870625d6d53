"""The descent on the grids: its gradients, its values, and its error against GPTQ's."""

from dataclasses import replace

import problems
import pytest
import torch

from mergemoe.errors import UserError
from mergemoe.merging.averaging import usage_mean
from mergemoe.moe.problem import Merged
from mergemoe.moe.solved import compact_experts, solved_tensors
from mergemoe.quantization.calibrated import calibrated_experts
from mergemoe.quantization.grids import Grid
from mergemoe.quantization.options import DESCENT
from mergemoe.quantization.quantize import quantize
from mergemoe.quantization.rounded_layer import RoundedLayer
from mergemoe.reconstruction.objective import Approximation

MAP = [0, 0, 1, 2, 1, 3]
GPTQ = {"bits": 2, "group": 8, "damping": 0.01}
STEPS = {"steps": 100, "batch": 256}
OPTIONS = {name: option.default for name, option in DESCENT.items()} | GPTQ | STEPS


@pytest.fixture(params=["gated", "not gated", "biased"])
def layer(request):
    shape = {"gated": request.param != "not gated", "biased": request.param == "biased"}
    small = problems.problem(hidden_size=32, width=32, **shape)
    generator = torch.Generator().manual_seed(1)
    tokens = [problems.draw_tokens(number, 6, 32, 2, generator) for number in (4000, 1000)]
    return replace(small, reader=problems.Given(*tokens, rows=500))


@pytest.fixture
def solved(layer):
    groups = layer.merged_groups
    means = [Merged(group, mean, {}) for group, mean in zip(groups, usage_mean(layer, groups), strict=True)]
    return solved_tensors(layer.experts, MAP, means)


def bits_of(layer):
    return {role: torch.full((4,), GPTQ["bits"]) for role in ("gate", "up", "down") if role in layer.experts.roles()}


def whole(experts):
    return {**experts.roles(), "expert_map": torch.tensor(MAP), "groups": torch.arange(4)}


def test_the_layer_computes_with_rounded_weights_and_gives_their_gradients_to_those_behind_them(layer, solved):
    quantized, _, grids = calibrated_experts(layer, compact_experts(layer.experts, solved), bits_of(layer), GPTQ)
    rounded, exact = RoundedLayer(layer, whole(quantized), grids), Approximation(layer, whole(quantized), list(grids))
    for name, weight in rounded.weights.items():
        role, place = name.split(".")
        if role in grids:  # less than half of a step away
            steps = (
                0.4
                * grids[role].scale[int(place), ..., None]
                * (torch.rand(weight[0].shape).unflatten(1, (-1, 8)) - 0.5)
            )
            weight.detach().add_(steps.flatten(1))
    (tokens,) = [tokens for tokens in layer.chunks(heldout=False)][:1]
    made = [one.output(tokens).square().sum() for one in (rounded, exact)]
    torch.testing.assert_close(*made)
    for one in made:
        one.backward()
    for name, weight in rounded.weights.items():
        torch.testing.assert_close(weight.grad, exact.weights[name].grad)
        assert "bias" in name or not torch.equal(weight, exact.weights[name])


def test_it_ends_on_the_grids_of_gptq_and_nearer_to_the_layer(layer, solved):
    found, record = quantize(layer.experts, solved, layer.reader, layer.act, by="descent", **OPTIONS)
    plain, before = quantize(layer.experts, solved, layer.reader, layer.act, by="gptq", **GPTQ)
    _, _, grids = calibrated_experts(layer, compact_experts(layer.experts, solved), bits_of(layer), GPTQ)
    for role, grid in grids.items():
        groups = found[role].unflatten(-1, (-1, GPTQ["group"]))
        assert torch.equal(grid.nearest(groups), groups)
        assert not torch.equal(found[role], plain[role])
    assert record["output_error"]["heldout"] < 0.99 * before["output_error"]["heldout"]
    assert record["bytes"] == before["bytes"] and record["start_error"] == before["start_error"]


def test_without_a_step_it_is_gptq(layer, solved):
    found, _ = quantize(layer.experts, solved, layer.reader, layer.act, by="descent", **OPTIONS | {"steps": 0})
    plain, _ = quantize(layer.experts, solved, layer.reader, layer.act, by="gptq", **GPTQ)
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_too_few_held_out_sequences_are_refused(layer, solved):
    layer.reader.held[:] = False
    with pytest.raises(UserError, match="a descent keeps the weights.*takes 2 of them.*there are 0"):
        quantize(layer.experts, solved, layer.reader, layer.act, by="descent", **OPTIONS)


def test_a_grid_of_many_rows_rounds_each_group_by_its_own():
    scale, zero = torch.tensor([[1.0, 0.5], [2.0, 4.0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    found = Grid(scale, zero, torch.full((2, 2), 2)).nearest(torch.full((2, 2, 3), 1.6))
    assert found[..., 0].tolist() == [[2.0, 1.0], [2.0, 0.0]]
    found = Grid(scale, zero, torch.tensor([[3, 4], [2, 1]])).nearest(torch.full((2, 2, 3), 1.6))
    assert found[..., 0].tolist() == [[2.0, 1.5], [2.0, -8.0]]
