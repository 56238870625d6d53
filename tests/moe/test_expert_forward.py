"""moe/expert_forward.py against transformers' own experts module."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergemoe.checkpoints.expert_weights import layer_entry, read_experts
from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import Activation, output, routed_output

SILU = Activation("silu")


def test_routed_output_is_that_of_the_stock_module(tiny, described):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, experts_implementation="eager")
    module = model.get_submodule(layer_entry(described, 2)["module"])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 32, generator=generator)
    index = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(50)])
    weight = torch.rand(50, 3, generator=generator)
    experts = read_experts(described, 2).map(lambda m: m.float())
    with torch.no_grad():
        expected = module(x, index, weight)
    torch.testing.assert_close(routed_output(x, index, weight, experts, SILU), expected, rtol=1e-5, atol=1e-6)


def test_equal_indices_of_one_token_add_up(described):
    experts = read_experts(described, 1).map(lambda m: m.double())
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index, weight = torch.full((5, 2), 3), torch.tensor([[0.25, 0.5]] * 5)
    torch.testing.assert_close(routed_output(x, index, weight, experts, SILU), 0.75 * output(x, experts, 3, SILU))


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(UserError, match="'xielu'"):
        Activation("xielu")
