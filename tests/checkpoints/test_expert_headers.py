"""Experts told from headers alone, against what transformers' own classes hold."""

import math

import architectures
import pytest

from mergemoe.checkpoints import cost, expert_headers, model_folder, validation
from mergemoe.models import layout

ENCODER_DECODER = {"is_encoder_decoder": True, "num_layers": 6, "num_experts": 2}


@pytest.mark.parametrize("name", architectures.CONFIGS)
def test_headers_tell_of_every_architecture_what_its_modules_hold(name, tmp_path):
    folder = architectures.save(name, tmp_path)
    validation.check_checkpoint(folder)
    layers = layout.describe_layout(folder, digests=False)["layers"]
    assert expert_headers.count_experts(folder) == {entry["layer"]: entry["experts"] for entry in layers}
    headers, config = model_folder.read_headers(folder), model_folder.read_config(folder)
    sizes = expert_headers.expert_sizes(headers, config)
    assert {layer: size["width"] for layer, size in sizes.items()} == {e["layer"]: e["width"] for e in layers}
    numbers = {e["layer"]: sum(math.prod(role["shape"]) for role in e["roles"].values()) for e in layers}
    assert {layer: size["parameters"] for layer, size in sizes.items()} == numbers
    assert {layer: size["bytes"] for layer, size in sizes.items()} == {e: 4 * n for e, n in numbers.items()}
    matrices = {role for entry in layers for role in entry["roles"] if not role.endswith("_bias")}
    assert set(expert_headers.matrix_roles(headers, config)) == matrices
    counted = cost.count_cost(folder)
    floats = [header for header in headers.values() if not header["dtype"].startswith("I")]
    assert counted["parameters"] == sum(math.prod(header["shape"]) for header in floats)
    # Experts twice as large add K/N of the matrices that they had.
    held = {key for entry in layers for role in entry["roles"].values() for key in role["keys"]}
    larger = {k: {**h, "shape": [*h["shape"][:-1], 2 * h["shape"][-1]]} if k in held else h for k, h in headers.items()}
    working = sum(
        2 * entry["top_k"] / entry["experts"] * math.prod(role["shape"])
        for entry in layers
        for name, role in entry["roles"].items()
        if not name.endswith("_bias")
    )
    added = cost.count_cost(folder, larger)["flops_per_token"] - counted["flops_per_token"]
    assert added == pytest.approx(working, abs=1e-6)


@pytest.mark.parametrize(
    ("shapes", "config", "counts"),
    [
        ({"backbone.layers.3.mixer.experts.{}.up_proj.weight": [6, 8]}, {}, {3: 2}),
        ({"model.language_model.layers.0.mlp.experts.{}.w1.weight": [6, 8]}, {}, {0: 2}),
        (
            {"model.visual.blocks.0.mlp.fc1.weight": [6, 8], "model.layers.1.mlp.experts.fc1.weight": [5, 8, 12]},
            {},
            {1: 5},
        ),
        ({"language_model.model.layers.0.feed_forward.experts.gate_up_proj": [5, 8, 12]}, {}, {0: 5}),
        ({"model.layers.4.moe.gate_proj.weight": [5, 6, 8], "model.layers.4.moe.router_bias": [5]}, {}, {4: 5}),
        ({"model.layers.0.block_sparse_moe.input_linear.weight": [5, 12, 8]}, {}, {0: 5}),
        (
            {
                "model.layers.0.mlp.input_linear.weight": [5, 12, 8],
                "model.layers.0.self_attention.experts.input_linear.weight": [7, 9, 8],
            },
            {},
            {0: 5},
        ),
        ({"transformer.blocks.2.ffn.experts.mlp.w1": [30, 8]}, {"ffn_config": {"ffn_hidden_size": 6}}, {2: 5}),
        (
            {
                "model.layers.0.mlp.experts.gate_up_proj_blocks": [5, 12, 2, 16],
                "model.layers.0.mlp.experts.gate_up_proj_scales": [5, 12, 2],
            },
            {},
            {0: 5},
        ),
        ({"model.layers.0.mlp.experts.{}.up_proj.weight": [6, 8]}, {"num_experts": 1, "zero_expert_num": 1}, {0: 1}),
        (
            {
                "model.layers.0.mlp.shared_experts.up_proj.weight": [6, 8],
                "model.layers.0.shared_mlp.input_linear.weight": [12, 8],
            },
            {},
            {},
        ),
        ({"model.layers.0.feed_forward.expert_bias": [5], "model.layers.0.mlp.experts.expert_map": [5]}, {}, {}),
        ({"model.layers.{}.mlp.experts.0.up_proj.weight": [6, 8]}, {"num_hidden_layers": 1}, {0: 1}),
        (
            {
                "encoder.block.1.layer.1.mlp.experts.expert_{}.wi.weight": [6, 8],
                "decoder.block.1.layer.2.mlp.experts.expert_0.wi.weight": [6, 8],
            },
            ENCODER_DECODER,
            {1: 2, 7: 1},
        ),
    ],
)
def test_every_stored_form_is_counted_by_its_keys(shapes, config, counts):
    headers = {
        key.format(i): {"dtype": "F32", "shape": shape, "bytes": 4 * math.prod(shape)}
        for key, shape in shapes.items()
        for i in range(2)
    }
    sizes = expert_headers.expert_sizes(headers, {"hidden_size": 8} | config)
    assert {layer: size["experts"] for layer, size in sizes.items()} == counts


@pytest.mark.parametrize("name", architectures.CONFIGS)
def test_a_token_is_multiplied_with_one_matrix_of_the_vocabulary_and_only_looked_up_in_the_other(name, tmp_path):
    folder = architectures.save(name, tmp_path)
    headers = model_folder.read_headers(folder)
    others = {k: h for k, h in headers.items() if h["shape"][:1] != [97] and "ngram_embedding" not in k}
    flops = cost.count_cost(folder)["flops_per_token"] - cost.count_cost(folder, others)["flops_per_token"]
    assert flops == pytest.approx(2 * 97 * 32, abs=1e-6)


@pytest.mark.parametrize("name", ["gemma4", "inkling_mm_model", "llama4", "qwen3_5_moe"])
def test_a_token_of_text_costs_a_multimodal_model_what_it_costs_the_text_model(name, tmp_path):
    alone = {"inkling_mm_model": "inkling_text"}.get(name, f"{name}_text")
    whole, text = (cost.count_cost(architectures.save(n, tmp_path / n)) for n in (name, alone))
    assert whole["flops_per_token"] == text["flops_per_token"]
    assert whole["parameters"] > text["parameters"]
