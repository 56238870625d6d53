"""Products of numbers of bfloat16: as exact as those in float32, and taken of such numbers only."""

from dataclasses import replace

import problems
import pytest
import torch

from mergemoe.merging import averaging, neuron_selection, solve, zipping
from mergemoe.merging.alignment import aligned_mean
from mergemoe.methods import catalogue
from mergemoe.moe import expert_forward, short_products
from mergemoe.moe.experts import Experts, joined
from mergemoe.moe.tokens import Remembered


@pytest.mark.parametrize("shape", [(40, 300), (3, 40, 300)])
def test_a_product_is_exact_up_to_rounding_in_float32(shape):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).bfloat16().float() for _ in range(2))
    exact = x.double() @ w.double().mT
    found = short_products.short_product(x, w)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 1e-6 * exact.norm()
    assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # as it was


def layer(dtype):
    """Some experts in float32 that hold numbers of bfloat16, and tokens stored as `dtype`."""
    made = problems.problem(tokens=400, hidden_size=16, width=8)
    experts = made.experts.map(lambda part: part.bfloat16())
    tokens = made.reader.parts[False]
    rows = {
        "hidden": tokens.hidden.bfloat16().to(dtype),
        "expert_index": tokens.index,
        "expert_weight": tokens.weight.float(),
        "router_logits": tokens.logits.float(),
        "sequence": torch.arange(400, dtype=torch.int32) // 10,
    }
    return experts, Remembered([rows], torch.arange(40) >= 32)


@pytest.mark.parametrize("method", ["mergemoe", "select", "routed"])
def test_a_capture_in_bfloat16_gives_the_solution_of_the_same_numbers_in_float32(method, monkeypatch):
    calls, product = [], short_products.short_product

    def counted(x, w):
        assert torch.equal(x, x.bfloat16().float()) and torch.equal(w, w.bfloat16().float())
        calls.append(1)
        return product(x, w)

    monkeypatch.setattr(expert_forward, "short_product", counted)
    options = {name: value for name, value in catalogue.complete(method, {}).items() if value is not None}
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        experts, reader = layer(dtype)
        found[dtype], _ = solve.solve(
            experts, [0, 0, 1, 2, 1, 3], [1] * 6, reader, problems.SILU, method=method, **options
        )
        assert bool(calls) == (dtype == torch.bfloat16)
        calls.clear()
    for name, tensor in found[torch.float32].items():
        torch.testing.assert_close(found[torch.bfloat16][name], tensor, rtol=0.01, atol=0.01)


def test_only_what_keeps_the_numbers_keeps_the_mark():
    experts, reader = layer(torch.bfloat16)
    working = experts.in_float32(reader.dtype)
    assert working.short and not experts.in_float32(torch.float32).short
    assert not experts.map(lambda part: part.float()).in_float32(torch.bfloat16).short
    problem = replace(problems.problem(hidden_size=16, width=8), experts=working)
    group = problem.merged_groups[:1]
    wide = neuron_selection.pool(problem, group[0])
    narrow = neuron_selection.keep_neurons(wide, torch.tensor([0, 3]))
    assert working[[1]].short and wide.short and narrow.short and joined([wide, wide]).short
    for rule in (averaging.plain_mean, averaging.usage_mean, aligned_mean, zipping.zipped_experts):
        assert not rule(problem, group)[0].short


def test_experts_have_no_mark_of_their_own():
    assert not Experts(up=torch.ones(1, 2, 3), down=torch.ones(1, 3, 2)).short
