"""The quantization of one layer against its experts written out, one by one."""

from dataclasses import replace

import problems
import pytest
import torch

from mergemoe.errors import UserError
from mergemoe.merging.averaging import usage_mean
from mergemoe.moe.problem import Merged
from mergemoe.moe.solved import compact_experts, output_error, solved_tensors
from mergemoe.quantization.gptq import gptq
from mergemoe.quantization.grids import rounded_blocks
from mergemoe.quantization.quantize import quantize

MAP = [0, 0, 1, 2, 1, 3]
ROUND, GPTQ = {"by": "round", "format": "Q4_0"}, {"by": "gptq", "bits": 3, "group": 8, "damping": 0.01}


@pytest.fixture(params=["gated", "not gated", "biased"])
def solved(request):
    """A layer in bfloat16 and its averages."""
    shape = {"gated": request.param != "not gated", "biased": request.param == "biased"}
    layer = problems.problem(hidden_size=32, width=32, **shape)
    experts = layer.experts.map(lambda part: part.bfloat16())
    groups = layer.merged_groups
    means = [Merged(group, mean, {}) for group, mean in zip(groups, usage_mean(layer, groups), strict=True)]
    return experts, solved_tensors(experts, MAP, means), layer


def weighted_inputs(layer, groups, expert, of):
    """The rows t v of one merged expert, written out token by token."""
    rows = []
    for x, g in problems.each_token(layer):
        if t := sum(g.get(member, 0.0) for member in groups[expert]):
            rows.append(t * of(x.float()).double())
    return torch.stack(rows)


def test_every_weight_is_at_the_nearest_value_and_biases_stay(solved):
    experts, tensors, layer = solved
    found, record = quantize(experts, tensors, layer.reader, layer.act, **ROUND)
    compact = compact_experts(experts.map(torch.Tensor.float), tensors)
    for role, part in compact.roles().items():
        expected = part if "bias" in role else rounded_blocks(part, "Q4_0")
        assert torch.equal(found[role], expected) and found[role].dtype == torch.float32, role
    weights = sum(part.numel() for role, part in compact.roles().items() if "bias" not in role)
    biases = sum(part.numel() for role, part in compact.roles().items() if "bias" in role)
    assert record["bytes"] == found["bytes"] == weights * 18 // 32 + 2 * biases
    assert found["groups"].tolist() == [0, 1, 2, 3] and found["expert_map"].tolist() == MAP


def test_gptq_corrects_for_the_tokens_of_each_expert_weighted_as_the_layer_uses_them(solved):
    experts, tensors, layer = solved
    found, _ = quantize(experts, tensors, layer.reader, layer.act, **GPTQ)
    compact = compact_experts(experts.map(torch.Tensor.float), tensors)
    how = {name: GPTQ[name] for name in ("bits", "group", "damping")}
    groups = [[0, 1], [2, 4], [3], [5]]
    for expert in range(4):
        v = weighted_inputs(layer, groups, expert, lambda x: x)
        for role in compact.roles().keys() & {"gate", "up"}:
            expected = gptq(compact.roles()[role][expert], v.T @ v, **how).weights
            torch.testing.assert_close(found[role][expert].double(), expected, rtol=0, atol=1e-5)
        made = type(compact)(**{role: found[role] for role in compact.roles()})
        v = weighted_inputs(
            layer, groups, expert, lambda x, made=made, expert=expert: problems.features(made, expert, x)
        )
        expected = gptq(compact.down[expert], v.T @ v, **how).weights
        assert (found["down"][expert].double() - expected).abs().gt(1e-5).float().mean() < 0.02  # ties of the last bits


@pytest.mark.parametrize("added", [{}, {"by": "descent", "steps": 4, "batch": 16, "rate": 0.3, "seed": 0}])
def test_the_grids_have_every_quantized_weight_among_their_values(solved, added, tmp_path):
    experts, tensors, layer = solved
    fixed = {"dtype": "float32", "targets": "kept"} if added else {}
    found, _ = quantize(experts, tensors, layer.reader, layer.act, scratch=tmp_path, **{**GPTQ, **added, **fixed})
    roles = {"gate", "up", "down"} & experts.roles().keys()
    assert {name.partition("_")[0] for name in found if name.endswith(("_scale", "_zero"))} == roles
    for role in roles:
        scale, zero = found[f"{role}_scale"], found[f"{role}_zero"]
        assert (scale.dtype, zero.dtype) == (torch.float16, torch.uint8)
        blocks = found[role].unflatten(-1, (-1, GPTQ["group"]))
        assert scale.shape == zero.shape == blocks.shape[:-1]
        steps = blocks / scale[..., None].float() + zero[..., None]
        assert torch.equal(steps, steps.round()) and steps.min() >= 0 and steps.max() <= 2 ** GPTQ["bits"] - 1


@pytest.mark.parametrize("options", [ROUND, GPTQ])
def test_errors_are_those_of_the_layer_before_and_after(solved, options):
    experts, tensors, layer = solved
    found, record = quantize(experts, tensors, layer.reader, layer.act, **options)
    working = experts.map(torch.Tensor.float)
    for which, kept in (("start_error", tensors), ("output_error", found)):
        expected = output_error(
            working, compact_experts(working, kept), layer.shares, layer.reader, layer.act, heldout=True
        )
        assert record[which]["heldout"] == pytest.approx(expected, rel=1e-6)
    assert record["output_error"]["heldout"] > record["start_error"]["heldout"]


def test_a_layer_that_no_method_worked_on_is_quantized_whole(solved):
    experts, _, layer = solved
    tensors = solved_tensors(experts, range(6), [])
    found, record = quantize(experts, tensors, layer.reader, layer.act, **ROUND)
    assert len(found["up"]) == record["kept"] == 6 and record["start_error"]["fit"] == 0


def test_rows_that_blocks_do_not_divide_are_refused(solved):
    experts, tensors, layer = solved
    with pytest.raises(UserError, match="rows of .* of 32 numbers cannot be divided into blocks of 24"):
        quantize(experts, tensors, layer.reader, layer.act, **{**GPTQ, "group": 24})


@pytest.mark.parametrize("options", [ROUND, GPTQ])
def test_weights_whose_scale_16_bits_cannot_hold_are_refused(solved, options):
    experts, _, layer = solved
    large = replace(experts.map(torch.Tensor.float), down=experts.down.float() * 1e9)
    tensors = solved_tensors(large, range(6), [])
    with pytest.raises(UserError, match="quantized down matrices are NaN or infinite"):
        quantize(large, tensors, layer.reader, layer.act, **options)
