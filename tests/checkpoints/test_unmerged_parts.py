"""Adapters and the weights of wrappers are called what they are, before the first job and in load."""

import json
import shutil

import pytest
import torch
from by_stages import by_workflow
from safetensors.torch import load_file, save_file
from tiny_project import make_tiny

import mergemoe
from mergemoe.checkpoints import validation
from mergemoe.checkpoints.model_folder import SINGLE
from mergemoe.errors import UserError
from mergemoe.models import layout

EXPERT = "model.layers.1.mlp.experts.7"


def stored(folder, name):
    """Give every tensor the name that a function makes of its own, or leave it out."""
    tensors = {name(key): tensor for key, tensor in load_file(folder / SINGLE).items() if name(key)}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


def inspected(folder):
    """What `mergemoe inspect` and the first job ask."""
    validation.check_checkpoint(folder)
    layout.describe_layout(folder, digests=False)


NAMES = {
    "torch.compile": (lambda key: f"_orig_mod.{key}", r"'_orig_mod.' is the name of a wrapper \(torch.compile\)"),
    "a compiled layer": (lambda key: key.replace(".mlp.", ".mlp._orig_mod."), r"wrapper \(torch.compile\)"),
    "DDP": (lambda key: f"module.{key}", r"'module.' is the name of a wrapper \(DataParallel, DDP or DeepSpeed\)"),
    "FSDP": (lambda key: key.replace("self_attn.", "_fsdp_wrapped_module.self_attn."), r"wrapper \(FSDP\)"),
    "compiled DDP": (lambda key: f"_orig_mod.module.{key}", r"wrapper \(torch.compile\)"),
    "peft": (lambda key: f"base_model.model.{key}", "as peft names the weights under an adapter"),
    "peft, one matrix": (lambda key: key.replace("q_proj", "q_proj.base_layer"), "merge_and_unload"),
    "peft, experts": (lambda key: key.replace(".up_proj.", ".up_proj.base_layer."), "merge_and_unload"),
    "a vision model": (lambda key: f"language_model.{key}", "Take 'language_model.' out of all names"),
    "any other": (lambda key: f"student.net.{key}", "Take 'student.net.' out of all names"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_a_wrapper_gives_are_said(case, tmp_path):
    name, said = NAMES[case]
    folder = stored(make_tiny(tmp_path / "tiny"), name)
    with pytest.raises(UserError, match=f"^{folder} stores .*{said}"):
        inspected(folder)
    with pytest.raises(UserError, match=str(folder)):
        mergemoe.load(folder, "cpu")


def test_names_behind_the_models_own_prefix_are_read(tmp_path):
    inspected(stored(make_tiny(tmp_path / "tiny"), lambda key: f"model.{key}"))  # as transformers reads them


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (f"{EXPERT}.", "config.json states 8 experts, but layer 1 stores 7"),
        (f"{EXPERT}.gate_proj.", "there are 7 stored keys for the gate projections of 8 experts"),
    ],
)
def test_a_missing_expert_is_named_with_its_folder(lost, said, tmp_path):
    folder = stored(make_tiny(tmp_path / "tiny"), lambda key: None if key.startswith(lost) else key)
    with pytest.raises(UserError, match=f"^{folder}: .*{said}"):
        inspected(folder)


def test_an_adapter_beside_a_model_is_refused_before_the_first_job(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / "adapter_config.json").write_text("{}")
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match=f"^{folder} holds an adapter .* beside the weights"):
            check(folder)


@pytest.mark.parametrize("kept", [("config.json",), ()])
def test_an_adapter_alone_is_said_with_its_model(kept, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/moe"}))
    save_file({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match=f"^{folder} holds an adapter .*of the model 'some/moe'.*merge_and_unload"):
            check(folder)


@pytest.mark.parametrize("name", ["config.json", SINGLE, "tokenizer.json"])
def test_links_to_files_that_are_gone_are_said(name, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / "README.md").symlink_to("nowhere")
    inspected(folder)  # nothing reads that one
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/nowhere")
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match=f"^{folder} has 1 links to files that are gone, such as {name}"):
            check(folder)


@pytest.mark.parametrize("start", ["model.model.", ""])
def test_names_with_another_prefix_than_the_models_are_read_to_the_end(start, tmp_path):
    """A base model is saved without `model.`, some programs add one: transformers reads both."""
    plain = make_tiny(tmp_path / "plain")
    folder = stored(shutil.copytree(plain, tmp_path / "renamed"), lambda key: key.replace("model.", start, 1))
    inspected(folder)
    ids = {"input_ids": torch.randint(3, 4096, (8, 24)), "attention_mask": torch.ones(8, 24, dtype=torch.int64)}
    for method in "average", "reap":
        made, expected = tmp_path / method, tmp_path / f"{method} of plain names"
        found = by_workflow(folder, ids, made, torch.bfloat16, method)(ids["input_ids"]).logits
        assert torch.equal(found, by_workflow(plain, ids, expected, torch.bfloat16, method)(ids["input_ids"]).logits)


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    tensors = load_file(folder / SINGLE)
    start = "model.layers.0.self_attn."
    more = {key.removeprefix("model."): torch.zeros_like(t) for key, t in tensors.items() if key.startswith(start)}
    save_file(tensors | more, folder / SINGLE, {"format": "pt"})
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match=f"^{folder} stores both layers.0.* and model.layers.0.*Delete one"):
            check(folder)


@pytest.mark.parametrize(
    "key",
    ["self_attn.q_proj.bias", "self_attn.q_proj.weight_mask", "self_attn.q_proj.lora_magnitude_vector.default.weight"],
)
def test_a_tensor_that_the_model_does_not_read_is_refused_before_the_first_job(key, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    save_file(load_file(folder / SINGLE) | {f"model.layers.0.{key}": torch.zeros(3)}, folder / SINGLE, {"format": "pt"})
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match=f"^{folder} has 1 tensors .*does not read, such as model.layers.0.{key}"):
            check(folder)


def test_a_table_of_rotations_is_left_unread(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    save_file(load_file(folder / SINGLE) | table, folder / SINGLE, {"format": "pt"})
    inspected(folder)
    mergemoe.load(folder, "cpu")


@pytest.mark.parametrize("name", ["n" * 1000, "n" * 10_000, "a/" * 3000, "none"])
def test_a_folder_that_cannot_be_is_refused(name, tmp_path):
    for check in inspected, mergemoe.load:
        with pytest.raises(UserError, match="cannot be read|there is no config.json"):
            check(tmp_path / name)
