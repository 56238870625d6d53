"""The compact checkpoint: what it holds, its size, how it loads, and that it computes what it should."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.calibration.activation_file import Reader
from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.checkpoints.model_folder import read_headers
from mergemoe.compressed.assemble import assemble
from mergemoe.errors import UserError
from mergemoe.merging.solve import solve
from mergemoe.moe.expert_forward import Activation

pytestmark = pytest.mark.usefixtures("own_module_cache")

SILU = Activation("silu")
MAPS = {1: [0, 1, 0, 2, 1, 0, 2, 0], 2: [0, 1, 1, 2, 3, 4, 0, 3]}  # sizes 4, 2, 2 and 2, 2, 1, 2, 1


@pytest.fixture(scope="module")
def solved(described, captured):
    found = {}
    for layer, expert_map in MAPS.items():
        with Reader(captured[layer]) as reader:
            experts = read_experts(described, layer)
            found[layer], _ = solve(experts, expert_map, [3] * 8, reader, SILU, method="mergemoe", ridge=0.0)
    return found


@pytest.fixture(scope="module")
def compact(described, solved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assemble") / "compact_tiny"
    assemble(described, solved, folder)
    return folder


@pytest.fixture(scope="module")
def reference(tiny, described, solved):
    """The stock model whose N slots hold copies of the merged experts."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for layer, tensors in solved.items():
        module = model.model.layers[layer].mlp.experts
        expert_map, groups = MAPS[layer], tensors["groups"].tolist()
        for expert, group in enumerate(expert_map):
            if group in groups:
                row = groups.index(group)
                gate_up = torch.cat([tensors["gate"][row], tensors["up"][row]])
                module.gate_up_proj.data[expert] = gate_up.float()
                module.down_proj.data[expert] = tensors["down"][row].float()
    return model.eval()


def library(folder):
    return mergemoe.load(folder, "cpu", torch.float32)


def remote(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, kernel):
    model.set_experts_implementation(kernel)
    ids = torch.randint(3, 4096, (2, 24), generator=torch.Generator().manual_seed(5))
    return model(ids).logits


@pytest.mark.parametrize("load", [library, remote])
def test_logits_equal_those_of_copies_in_all_slots(compact, reference, load):
    model = load(compact)
    assert torch.equal(logits(model, "batched_mm"), logits(reference, "batched_mm"))
    for kernel in ("eager", "grouped_mm"):
        torch.testing.assert_close(logits(model, kernel), logits(reference, kernel), rtol=1e-4, atol=1e-5)


def test_generation_gives_the_tokens_of_the_reference(compact, reference):
    ids = torch.arange(5, 15)[None]
    found, expected = (m.generate(ids, max_new_tokens=8, do_sample=False) for m in (library(compact), reference))
    assert torch.equal(found, expected)


def test_it_is_smaller_by_what_the_removed_experts_weigh(tiny, compact):
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (tiny, compact))
    weight = {key: entry["bytes"] for key, entry in read_headers(tiny).items() if ".experts." in key}
    removed = sum(weight.values()) * (5 + 3) // 16
    assert before - after == pytest.approx(removed, rel=0.01, abs=4096)  # 4096: the header's own lines


def test_everything_but_merged_experts_keeps_its_bytes(tiny, compact, solved):
    before, after = load_file(tiny / "model.safetensors"), load_file(compact / "model.safetensors")
    for key, tensor in before.items():
        if ".experts." not in key:
            assert torch.equal(after[key], tensor), key
    single = {2: 3, 4: 5}  # groups of one expert in layer 2, and that expert
    for group, expert in single.items():
        for role in ("gate", "up", "down"):
            name = "model.layers.2.mlp.experts.{}.{}_proj.weight"
            assert torch.equal(after[name.format(group, role)], before[name.format(expert, role)])
    assert after["model.layers.1.mlp.experts.expert_map"].tolist() == MAPS[1]


def test_keeping_all_experts_writes_a_stock_checkpoint_of_the_original_bytes(tiny, described, captured, tmp_path):
    kept = {}
    for layer in MAPS:
        with Reader(captured[layer]) as reader:
            kept[layer], record = solve(
                read_experts(described, layer), list(range(8)), [3] * 8, reader, SILU, method="average"
            )
        assert record["output_error"] == {"fit": 0.0, "heldout": 0.0}
    assemble(described, kept, tmp_path / "same")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "auto_map" not in json.loads((tmp_path / "same" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "same")


def test_a_plain_stock_load_fails_loudly(compact):
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(compact)


def test_saving_a_loaded_model_keeps_it_loadable(compact, tmp_path):
    model = remote(compact)
    model.save_pretrained(tmp_path / "again_tiny")
    for load in (library, remote):
        assert torch.equal(logits(load(tmp_path / "again_tiny"), "batched_mm"), logits(model, "batched_mm"))


def test_a_sharded_original_gives_a_sharded_copy_with_its_index(tiny, described, solved, compact, tmp_path):
    from mergemoe.models import layout

    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assemble(layout.describe_layout(tmp_path / "sharded"), solved, tmp_path / "sharded_compact", shard_bytes=100_000)
    assert len(list((tmp_path / "sharded_compact").glob("*.safetensors"))) > 1
    assert torch.equal(logits(library(tmp_path / "sharded_compact"), "eager"), logits(library(compact), "eager"))


def test_a_folder_that_is_no_checkpoint_and_a_newer_format_are_refused(compact, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        mergemoe.load(tmp_path)
    config = json.loads((compact / "config.json").read_text())
    config["mergemoe"]["format"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="format 99"):
        mergemoe.load(tmp_path)
