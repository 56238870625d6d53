"""A checkpoint that lacks what its model needs, or has it in another shape, is refused from its headers."""

import json

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import make_tiny

import mergemoe
from mergemoe.errors import UserError
from mergemoe.models import layout


def change(folder, key, tensor):
    """Take a tensor out of a checkpoint in one file, or put another in its place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(key)
    save_file(tensors if tensor is None else tensors | {key: tensor}, path, {"format": "pt"})


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.2.self_attn.q_proj.weight",
    ],
)
def test_a_missing_tensor_is_named_and_never_filled_with_random_numbers(key, tmp_path):
    folder = make_tiny(tmp_path / "model")
    change(folder, key, None)
    with pytest.raises(UserError, match=rf"1 of the \d+ tensors that the model needs are missing, such as {key}"):
        layout.describe_layout(folder, digests=False)
    with pytest.raises(UserError, match=f"lacks 1 tensors .* such as {key}"):
        mergemoe.load(folder, "cpu")


def test_a_head_that_is_the_embedding_is_not_missed(tmp_path):
    folder = make_tiny(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    layout.describe_layout(folder, digests=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="lm_head.weight.*tie_word_embeddings"):
        layout.describe_layout(folder, digests=False)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("model.layers.0.self_attn.q_proj.weight", [16, 32], r"\[16, 32\], but config.json gives \[32, 32\]"),
        ("model.embed_tokens.weight", [4095, 32], r"\[4095, 32\], but config.json gives \[4096, 32\]"),
        ("model.layers.1.mlp.experts.5.up_proj.weight", [12, 32], r"\[12, 32\], but others like it have \[24, 32\]"),
    ],
)
def test_another_shape_is_named_with_both(key, shape, words, tmp_path):
    folder = make_tiny(tmp_path / "model")
    change(folder, key, torch.zeros(shape, dtype=torch.bfloat16))
    with pytest.raises(UserError, match=f"{key} has the shape {words}"):
        layout.describe_layout(folder, digests=False)


def test_a_tensor_that_is_cut_into_several_parameters_stands_for_all_of_them(tmp_path):
    folder = architectures.save("step3p7", tmp_path / "model")
    layout.describe_layout(folder, digests=False)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    key = next(key for key in index["weight_map"] if key.endswith("in_proj_weight"))
    path = folder / index["weight_map"][key]
    tensors = load_file(path)
    tensors.pop(key)
    save_file(tensors, path, {"format": "pt"})
    index["weight_map"].pop(key)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=": 3 of the 72 tensors that the model needs are missing"):
        layout.describe_layout(folder, digests=False)


def test_what_transformers_refuses_is_said_in_one_line(tmp_path):
    folder = make_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "nonesuch"}))
    with pytest.raises(UserError, match="config.json: transformers cannot build the model from it .*nonesuch"):
        layout.describe_layout(folder, digests=False)


def test_the_text_part_of_a_larger_model_is_said_to_be_one(tmp_path):
    folder = make_tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    renamed = {key.replace("model.", "model.language_model.", 1): tensor for key, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    for reader in (lambda: layout.describe_layout(folder, digests=False), lambda: mergemoe.load(folder, "cpu")):
        with pytest.raises(UserError, match="text part of a larger model .'language_model.' in their names"):
            reader()
