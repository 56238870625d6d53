"""Compression in memory, saving, and what both must have in common with the workflow."""

import json

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe import cluster, layout
from mergemoe.activations import Reader
from mergemoe.assemble import assemble
from mergemoe.capture import batches_of, capture
from mergemoe.errors import UserError
from mergemoe.features import Activation
from mergemoe.profile import profile
from mergemoe.solve import solve
from mergemoe.stream import LayeredModel
from mergemoe.text import heldout_rows
from mergemoe.weights import read_experts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


def drawn(rows=8):
    ids = torch.randint(3, 97, (rows, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[3, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def by_workflow(path, tokens, method, folder, dtype):
    """What the stages compute, called one after the other."""
    described = layout.describe(path, digests=False)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 48, CPU)
    heldout = torch.tensor(heldout_rows(len(tokens["input_ids"]), 0.25, 7))
    files, _ = capture(LayeredModel(path, dtype, CPU), described, batches, heldout, folder / "scratch", {})
    solved = {}
    for entry in described["layers"]:
        experts, act = read_experts(described, entry["layer"]), Activation(**entry["activation"])
        with Reader(files[entry["layer"]]) as reader:
            usage = profile(reader, experts, act)["usage"]
            expert_map, _ = cluster.by_weights(experts, usage, 4)
            solved[entry["layer"]], _ = solve(experts, expert_map, usage, reader, act, method=method)
    assemble(described, solved, folder / "workflow")
    return mergemoe.load(folder / "workflow", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["qwen3_moe", "gpt_oss", "nemotron_h", "dbrx", "longcat_flash", "jetmoe", "llama4_text"]
)
def test_the_weights_are_the_workflows_bit_for_bit(name, dtype, tmp_path):
    path = architectures.save(name, tmp_path / "full", dtype)
    expected = by_workflow(path, drawn(), "mergemoe", tmp_path, dtype)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    found = mergemoe.compress(model, drawn(), experts=4, method="mergemoe", seed=7, holdout=0.25, batch_tokens=48)
    assert found is model
    state = expected.state_dict()
    assert state.keys() == found.state_dict().keys()
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    with torch.no_grad():
        assert torch.equal(found(**drawn()).logits, expected(**drawn()).logits)


def test_saving_what_was_compressed_in_memory_loads_both_ways(tiny, tmp_path):
    model = mergemoe.load(tiny, "cpu", torch.float32)
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.compress(model, ids, experts=0.5, method="average", layers=[2])
    mergemoe.save(model, tmp_path / "saved_tiny")
    library = mergemoe.load(tmp_path / "saved_tiny", "cpu", torch.float32)
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "saved_tiny", trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(library(ids).logits, model(ids).logits)
        assert torch.equal(remote(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "saved_tiny" / "config.json").read_text())
    assert [facts["experts"] for facts in config["mergemoe"]["experts"].values()] == [[8, 4]]
    assert (tmp_path / "saved_tiny" / "tokenizer.json").is_file()
    assert (tmp_path / "saved_tiny" / "generation_config.json").is_file()
    with pytest.raises(UserError, match="exists"):
        mergemoe.save(model, tmp_path / "saved_tiny")


def test_layers_may_differ_in_their_number_of_experts(tiny, tmp_path):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.load(tiny, "cpu", torch.float32)
    mergemoe.compress(model, ids, experts=3, layers=[1])
    with pytest.raises(UserError, match=r"layers \[0\] hold no experts; those that do: 1, 2"):
        mergemoe.compress(mergemoe.load(tiny, "cpu"), ids, layers=[0])
    assert [len(model.model.layers[i].mlp.experts.gate_up_proj) for i in (1, 2)] == [3, 8]


def test_what_was_compressed_is_not_compressed_again(tiny):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.compress(mergemoe.load(tiny, "cpu", torch.float32), ids, method="average")
    with pytest.raises(UserError, match="compressed already"):
        mergemoe.compress(model, ids)


def test_a_dense_model_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1))
    with pytest.raises(UserError, match="no experts"):
        mergemoe.compress(model, torch.ones(4, 8, dtype=torch.int64))


def test_the_kernel_is_what_it_was(tiny):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.load(tiny, "cpu", torch.float32)
    before = model.config._experts_implementation
    mergemoe.compress(model, ids, method="average")
    assert model.config._experts_implementation == before != "eager"
