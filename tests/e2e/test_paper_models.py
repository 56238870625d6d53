"""The three models of MergeMoE (arXiv 2510.14436, appendix C): true counts, small widths, through the whole workflow.

The paper merges the last layers: 28 to 47 of Qwen3-30B's 48, 10 to 23 of Qwen1.5-MoE's 24, 16 to 27 of
DeepSeekMoE-16B's 28; of three layers these are the last, the last two, and the last.
"""

import json
import shutil

import deepseek_checkpoint
import pytest
import torch
import yaml
from tiny_project import ROOT, copy_project, snakemake
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import mergemoe

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]

SMALL = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "moe_intermediate_size": 12,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
# What is the paper's: experts, top-k, shared experts, normalization; layers merged (scaled), experts kept.
QWEN15 = Qwen2MoeConfig(
    **SMALL, num_key_value_heads=4, num_experts=60, num_experts_per_tok=4, norm_topk_prob=False,
    shared_expert_intermediate_size=48,
)  # fmt: skip
QWEN3 = Qwen3MoeConfig(
    **SMALL, num_key_value_heads=2, head_dim=8, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True
)
DEEPSEEK = {**deepseek_checkpoint.CONFIG, "vocab_size": 4096}
RUNS = {"qwen15": ("1-2", 30, 60), "qwen3": ("2", 64, 128), "deepseek": ("2", 28, 64)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("paper"))
    shutil.rmtree(folder / "tiny-moe")
    torch.manual_seed(0)
    for name, model in {"qwen15": Qwen2MoeForCausalLM(QWEN15), "qwen3": Qwen3MoeForCausalLM(QWEN3)}.items():
        model.to(torch.bfloat16).save_pretrained(folder / name)
    deepseek_checkpoint.random_checkpoint(folder / "deepseek", DEEPSEEK, torch.bfloat16)
    for name in RUNS:
        for path in (ROOT / "data" / "demo-moe").glob("tokenizer*"):
            shutil.copyfile(path, folder / name / path.name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["model"] = {name: {"path": name} for name in RUNS}
    params["cluster"] = {name: {"by": "weights", "experts": m, "layers": at} for name, (at, m, _) in RUNS.items()}
    params["solve"] = {"mergemoe": {"method": "mergemoe"}}
    params["runs"] = [[name, "mixed", name, "mergemoe"] for name in RUNS]
    params["evaluate"] |= {"tasks": {}, "generation": None}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_papers_layers_keep_the_papers_number_of_experts(project, name):
    layers, kept, experts = RUNS[name]
    model = mergemoe.load(project / f"results/models/{name}/mixed/{name}/mergemoe", "cpu", torch.float32)
    first, last = int(layers[0]), int(layers[-1])
    for number, layer in enumerate(model.model.layers):
        if name == "deepseek" and number == 0:
            assert not hasattr(layer.mlp, "experts")  # dense, as published
            continue
        merged = first <= number <= last
        assert len(layer.mlp.experts.gate_up_proj) == (kept if merged else experts)
        assert len(layer.mlp.gate.weight) == experts  # the router stays


@pytest.mark.parametrize("name", RUNS)
def test_its_scores_are_there_and_say_that_something_changed(project, name):
    metrics = json.loads((project / "results/metrics.json").read_text())[name]
    run = metrics["runs"][f"mixed/{name}/mergemoe"]
    assert run["fidelity/kl"] > 0 and run["fidelity/output_error"] > 0
    assert run["cost/bytes"] < metrics["full"]["cost/bytes"]


def test_the_shared_experts_of_deepseek_are_counted_in_full(project):
    """The native copy computes what the published tensors say (models/test_deepseek.py), through every stage."""
    described = json.loads((project / "results/layout/deepseek.json").read_text())
    assert described["model_type"] == "qwen2_moe" and [e["layer"] for e in described["layers"]] == [1, 2]
    assert {(e["experts"], e["top_k"]) for e in described["layers"]} == {(64, 6)}
    assert not described["layers"][0]["router"]["normalized"]
