"""The matrices outside the experts: which they are in every family, and what is saved by rounding them."""

import architectures
import pytest
import torch

from mergemoe.checkpoints import cost, model_folder
from mergemoe.models import layout
from mergemoe.quantization import other_matrices
from mergemoe.quantization.blocks import BLOCKS


def of_experts(described):
    return {key for entry in described["layers"] for facts in entry["roles"].values() for key in facts["keys"]}


@pytest.mark.parametrize("name", architectures.CONFIGS)
def test_neither_experts_nor_routers_nor_vectors_are_among_them(name, tmp_path):
    path = architectures.save(name, tmp_path / "full", torch.float32)
    headers, config = model_folder.read_headers(path), model_folder.read_config(path)
    described = layout.describe_layout(path, digests=False)
    found = other_matrices.other_matrices(headers, config)
    assert not set(found) & of_experts(described)
    assert all(len(headers[key]["shape"]) == 2 and headers[key]["shape"][1] % 32 == 0 for key in found)
    for entry in described["layers"]:
        module = entry["router"]["module"].rpartition(".")[2]
        assert not [key for key in found if f".{entry['layer']}." in key and f".{module}.weight" in key], found


def test_attention_shared_experts_and_embeddings_are_among_them(tmp_path):
    path = architectures.save("qwen2_moe", tmp_path / "full", torch.float32)
    headers, config = model_folder.read_headers(path), model_folder.read_config(path)
    found = other_matrices.other_matrices(headers, config)
    stay = [key for key in headers if len(headers[key]["shape"]) == 2 and key not in found and ".experts." not in key]
    assert {key.rsplit(".", 2)[-2] for key in found} >= {"embed_tokens", "q_proj", "o_proj", "gate_proj"}
    # Rows of 24 numbers are no whole blocks.
    assert {key.rsplit(".", 2)[-2] for key in stay} == {"gate", "shared_expert_gate", "down_proj"}


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
def test_what_is_saved_is_the_difference_to_the_blocks(format, tmp_path):
    path = architectures.save("qwen3_moe", tmp_path / "full", torch.bfloat16)
    headers, config = model_folder.read_headers(path), model_folder.read_config(path)
    numbers = sum(
        headers[key]["shape"][0] * headers[key]["shape"][1] for key in other_matrices.other_matrices(headers, config)
    )
    block, size = BLOCKS[format]
    assert other_matrices.saved_bytes(headers, config, format) == 2 * numbers - numbers * size // block
    assert other_matrices.saved_bytes(headers, config, "none") == 0
    assert 0 < other_matrices.saved_bytes(headers, config, format) < cost.count_cost(path)["bytes"]
