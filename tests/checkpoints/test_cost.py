"""Costs against what torch itself counts, on tiny random models."""

import json

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from mergemoe.checkpoints import cost
from mergemoe.compressed import model_config
from mergemoe.compressed.assemble import assemble
from mergemoe.errors import UserError
from mergemoe.models import layout

BASE = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
QWEN = dict(**BASE, intermediate_size=48, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=3)
CONFIGS = {
    "qwen3_moe": lambda: Qwen3MoeConfig(**QWEN, mlp_only_layers=[0]),
    "tied": lambda: Qwen3MoeConfig(**QWEN, tie_word_embeddings=True),
    "mixtral": lambda: MixtralConfig(**BASE, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2),
    "biases": lambda: GptOssConfig(**BASE, intermediate_size=24, num_local_experts=8, num_experts_per_tok=3),
}


def saved(config: PreTrainedConfig, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_bytes_are_what_transformers_counts(name, tmp_path):
    model = saved(CONFIGS[name](), tmp_path)
    counted = cost.count_cost(tmp_path)
    assert counted["parameters"] == model.num_parameters()
    assert counted["bytes"] == 4 * model.num_parameters()


@pytest.mark.parametrize("name", ["qwen3_moe", "tied", "mixtral"])
def test_flops_are_the_matrix_products_that_torch_counts(name, tmp_path):
    model = saved(CONFIGS[name](), tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(10)[None])
    products = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in products.items() if str(op) in {"aten.mm", "aten.addmm"})  # attention scores are bmm
    assert cost.count_cost(tmp_path)["flops_per_token"] == products / 10


def test_stacked_experts_cost_what_single_ones_cost(tmp_path):
    """Stack the experts' matrices of a checkpoint: 3 of 8 work on a token either way."""
    saved(CONFIGS["qwen3_moe"](), tmp_path)
    single, tensors = cost.count_cost(tmp_path), load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.1.mlp.experts"
    for role in ("gate_proj", "up_proj", "down_proj"):
        tensors[f"{prefix}.{role}"] = torch.stack([tensors.pop(f"{prefix}.{e}.{role}.weight") for e in range(8)])
    save_file(tensors, tmp_path / "model.safetensors")
    assert cost.count_cost(tmp_path) == single


def test_halving_the_experts_keeps_the_flops_and_ignores_the_map(tmp_path):
    saved(CONFIGS["qwen3_moe"](), tmp_path)
    full, tensors = cost.count_cost(tmp_path), load_file(tmp_path / "model.safetensors")
    dropped = [key for key in tensors if any(f".experts.{e}." in key for e in range(4, 8))]
    for key in dropped:
        del tensors[key]
    tensors["model.layers.1.mlp.experts.expert_map"] = torch.arange(8) % 4
    save_file(tensors, tmp_path / "model.safetensors")
    counted = cost.count_cost(tmp_path)
    assert counted["parameters"] == full["parameters"] - 4 * 3 * 32 * 24
    assert counted["bytes"] == 4 * counted["parameters"]
    assert counted["flops_per_token"] == full["flops_per_token"]


@pytest.mark.parametrize("width", [12, 48])
def test_flat_experts_of_another_width_are_counted_by_what_the_configuration_says(width, tmp_path):
    path = architectures.save("dbrx", tmp_path / "full")
    described = layout.describe_layout(path, digests=False)
    solved = {
        entry["layer"]: {
            "groups": torch.arange(4),
            "expert_map": torch.arange(8) % 4,
            **{role: torch.zeros(model_config.role_shape(entry, role, 4, width)) for role in entry["roles"]},
        }
        for entry in described["layers"]
    }
    assemble(described, solved, tmp_path / "compact")
    per_neuron = 3 * (2 * 3 * 32)  # layers; flops of its gate, up and down
    full, counted = cost.count_cost(path), cost.count_cost(tmp_path / "compact")
    assert counted["flops_per_token"] == full["flops_per_token"] + 3 * per_neuron * (width - 24)  # 3 experts work


def test_a_stored_copy_of_a_tied_head_counts_once(tmp_path):
    saved(CONFIGS["tied"](), tmp_path)
    single, tensors = cost.count_cost(tmp_path), load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert cost.count_cost(tmp_path) == single


def test_a_configuration_without_top_k_is_named(tmp_path):
    saved(CONFIGS["qwen3_moe"](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_experts_per_tok"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_experts_per_tok"):
        cost.count_cost(tmp_path)
