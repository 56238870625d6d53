"""Checkpoints that stock code loads: fewer experts behind fewer router rows, or narrower experts."""

import functools
import json
import subprocess
import sys

import architectures
import pytest
import torch
import yaml
from by_stages import by_workflow, drawn
from safetensors.torch import load_file
from tiny_project import ROOT
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.checkpoints import cost
from mergemoe.checkpoints.config_keys import CONFIG_KEYS
from mergemoe.checkpoints.router_headers import ROUTERS
from mergemoe.compressed import modeling, stock
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import plan

pytestmark = pytest.mark.usefixtures("own_module_cache")

PRUNED = {"method": "joint", "routing": "pruned"}
FOLDED = {"method": "joint", "routing": "folded", "features": "selected"}
SLIM = {"method": "slim", "width": 0.3}  # 8 of 24 neurons, a third of the shared expert
STOCK = {"reap": {"method": "reap"}, "pruned": PRUNED, "slim": SLIM, "folded": FOLDED}
LOADS = """
import sys
sys.modules["mergemoe"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    save_file({"logits": model(torch.arange(3, 27)[None]).logits.detach()}, folder + ".logits")
"""
CASES = [(name, chosen) for name in ("qwen3_moe", "qwen2_moe", "deepseek_v3") for chosen in STOCK][:-1]  # but the last


def experts(options):
    return {} if options["method"] == "slim" else {"experts": 6}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder per case: the full model, what the workflow wrote, and its logits in a process without this package."""
    folder = tmp_path_factory.mktemp("stock")

    @functools.cache
    def of(name):
        made = {case: folder / "-".join(case) for case in CASES if case[0] == name}
        for (_, chosen), own in made.items():
            by_workflow(architectures.save(name, own / "full"), drawn(), own, torch.float32, **STOCK[chosen])
        workflows = [own / "workflow" for own in made.values()]
        subprocess.run([sys.executable, "-c", LOADS, *workflows], check=True)
        return made

    return of


@pytest.mark.parametrize(
    ("name", "chosen"),
    [pytest.param(*case, marks=() if case[0] == "qwen3_moe" else pytest.mark.full) for case in CASES],
)
def test_what_the_workflow_writes_is_stock_and_what_compress_makes(name, chosen, written, tmp_path):
    own = written(name)[name, chosen]
    options, path, workflow = STOCK[chosen], own / "full", own / "workflow"
    settings = json.loads((workflow / "config.json").read_text())
    assert not settings.keys() & {"auto_map", "mergemoe"}
    assert not list(workflow.glob("*.py"))

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    found = mergemoe.compress(model, drawn(), **experts(options), seed=7, holdout=0.25, batch_tokens=48, **options)
    assert found is model and type(found).__name__ == settings["architectures"][0]
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, load_file(workflow.with_suffix(".logits"))["logits"])
    mergemoe.save(found, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    expected = AutoModelForCausalLM.from_pretrained(workflow).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
    assert sum(p.numel() for p in found.parameters()) < sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(path).parameters()
    )


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_reap_is_the_model_that_never_chooses_the_others(name, tmp_path):
    path = architectures.save(name, tmp_path / "full", torch.float32)
    found = mergemoe.compress(AutoModelForCausalLM.from_pretrained(path), drawn(), experts=6, method="reap")
    masked = AutoModelForCausalLM.from_pretrained(path)
    rows = {}
    for (key, module), (_, smaller) in zip(masked.named_modules(), found.named_modules(), strict=True):
        if (
            type(module).__name__ in {"DeepseekV3TopkRouter", "Glm4MoeTopkRouter"}
            or "TopKRouter" in type(module).__name__
        ):
            gone = [row for row in module.weight if not any(torch.equal(row, kept) for kept in smaller.weight)]
            rows[key] = [i for i, row in enumerate(module.weight) if any(row is g or torch.equal(row, g) for g in gone)]
            assert len(smaller.weight) == 6 and len(rows[key]) == 2
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias[rows[key]] = -1e9
            else:  # a logit that no softmax sees, for hidden states of any sign
                module.forward = masked_softmax(module, rows[key])
    assert rows
    with torch.no_grad():
        torch.testing.assert_close(found(**drawn()).logits, masked(**drawn()).logits, rtol=1e-4, atol=1e-4)
    mergemoe.save(found, tmp_path / "small")
    chosen = {
        "model": {"tiny": {"path": str(path)}},
        "cluster": {"six": {"by": "saliency", "experts": 6}},
        "solve": {"reap": {"method": "reap"}},
        "runs": "all",
    }
    params = read_params({**yaml.safe_load((ROOT / "params.yaml").read_text()), **chosen})
    counted = cost.count_cost(tmp_path / "small")
    assert plan.run_size(params, params.all_runs()[0]) == {what: counted[what] for what in ("parameters", "bytes")}


def masked_softmax(router, gone):
    """A softmax router as its paper has it, that cannot choose some experts."""

    def forward(hidden):
        logits = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
        logits[:, gone] = float("-inf")
        weight, index = logits.float().softmax(-1).topk(router.top_k)
        if getattr(router, "norm_topk_prob", True):
            weight = weight / weight.sum(-1, keepdim=True)
        return logits, weight, index

    return forward


def test_rows_are_joined_only_where_no_groups_of_experts_are_chosen_first(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(architectures.save("deepseek_v3", tmp_path / "full", torch.float32))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="first chooses among 2 groups of experts"):
        mergemoe.compress(model, drawn(), experts=4, **FOLDED)
    for kept, why in ((3, "multiple of 2"), (2, "Keep at least 3"), (4, "hold 2 of 4 kept experts. Keep at least 6")):
        with pytest.raises(UserError, match=why):
            mergemoe.compress(model, drawn(), experts=kept, method="reap")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_router_that_is_not_known_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(architectures.save("gpt_oss", tmp_path / "full", torch.float32))
    with pytest.raises(UserError, match="the routing rule of gpt_oss is not known"):
        mergemoe.compress(model, drawn(), experts=4, method="reap")


def test_layers_of_different_sizes_are_no_stock_model(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(architectures.save("qwen2_moe", tmp_path / "full", torch.float32))
    with pytest.raises(UserError, match="All MoE layers must keep the same number of experts"):
        mergemoe.compress(model, drawn(), experts=4, method="reap", layers=[1])


def test_of_shared_experts_that_count_in_widths_more_are_as_wide_as_before():
    config = architectures.CONFIGS["deepseek_v3"]().to_dict()
    assert stock.saved_shapes(stock.empty_model(config))["model.layers.1.mlp.shared_experts.up_proj.weight"] == [24, 32]
    narrower = stock.find_config(config, changes(config, 12), 8, 12)
    assert (narrower["moe_intermediate_size"], narrower["n_shared_experts"]) == (12, 2)
    assert stock.find_config(config, changes(config, 10), 8, 10) is None


def changes(config, width):
    """The shapes of experts of some width, named by hand."""
    found = stock.saved_shapes(stock.empty_model(config))
    return {
        name: [8, 2 * width, 32] if "gate_up" in name else [8, 32, width] for name in found if "mlp.experts" in name
    }


def test_the_modeling_file_knows_the_keys_that_config_json_may_have():
    """It is copied into checkpoints, so it has lists of its own; the two names of widths are of modules alone."""
    assert set(modeling._COUNTS) <= set(CONFIG_KEYS["experts"])
    assert set(modeling._WIDTHS) - {"intermediate_dim", "expert_dim"} <= set(CONFIG_KEYS["width"])
