"""Quantized checkpoints: refused by name, or made plain with exactly the numbers that their scales say.

Two references: transformers' own dequantization of the whole model, and numpy on what an own quantizer stored.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import chance
import numpy as np
import pytest
import torch
import yaml
from quantized import bits, make_fp8, make_mxfp4
from safetensors.torch import load_file, save_file
from tiny_project import ROOT, copy_project, snakemake
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from mergemoe.artifacts import digests, store
from mergemoe.checkpoints import expert_headers, model_folder, quantization
from mergemoe.checkpoints.hub import hub_record
from mergemoe.errors import UserError
from mergemoe.models import layout
from mergemoe.models.dequantize import QuantizedModel, dequantize_checkpoint
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import plan, preflight
from stages import convert as stage
from stages import layout as layout_stage

MAKERS = {
    "fp8": (make_fp8, FineGrainedFP8Config),
    "fp8 with bfloat16 scales": (lambda folder: make_fp8(folder, torch.bfloat16), FineGrainedFP8Config),
    "fp8 with tied embeddings": (lambda folder: make_fp8(folder, tie_word_embeddings=True), FineGrainedFP8Config),
    "mxfp8": (lambda folder: make_fp8(folder, torch.uint8, (1, 32), "mxfp8"), FineGrainedFP8Config),
    "mxfp4": (make_mxfp4, Mxfp4Config),
}


def swept(name):
    return pytest.param(name, marks=() if name in {"fp8", "mxfp4"} else pytest.mark.full)


@pytest.fixture(scope="module", params=[swept(name) for name in MAKERS])
def made(request, tmp_path_factory):
    """A quantized checkpoint, its plain copy, the bits expected of it, and transformers' class for its method."""
    folder = tmp_path_factory.mktemp("quantized")
    make, settings = MAKERS[request.param]
    expected = make(folder / "original")
    dequantize_checkpoint(folder / "original", folder / "copy")
    return folder / "original", folder / "copy", expected, settings


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    """A checkpoint in FP8."""
    folder = tmp_path_factory.mktemp("fp8") / "original"
    make_fp8(folder)
    return folder


def tensors_of(folder):
    """All tensors of a checkpoint folder."""
    return {key: tensor for path in model_folder.shard_files(folder) for key, tensor in load_file(path).items()}


def test_the_copy_holds_what_the_stored_numbers_and_scales_say(made):
    _, copy, expected, _ = made
    tensors = tensors_of(copy)
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(bits(tensor), expected[key], err_msg=key)


def test_the_copy_is_what_transformers_saves_of_the_model_it_dequantizes_whole(made, tmp_path):
    original, copy, _, settings = made
    config = settings(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(original, quantization_config=config, dtype=torch.bfloat16)
    del model._weight_conversions  # reversed, Fp8Dequantize quantizes: 5.23 raises on experts
    model.save_pretrained(tmp_path)
    whole, tensors = tensors_of(tmp_path), tensors_of(copy)
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) and tensor.dtype == whole[key].dtype for key, tensor in tensors.items())
    loaded = AutoModelForCausalLM.from_pretrained(copy, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    ids = torch.arange(3, 20)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_copy_has_a_plain_config_an_index_and_every_other_file(made):
    original, copy, *_ = made
    config = model_folder.read_config(copy)
    assert config == {**quantization.unquantized_config(model_folder.read_config(original)), "dtype": "bfloat16"}
    assert "quantization_config" not in config
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    headers = model_folder.read_headers(copy)
    assert index["weight_map"] == {key: entry["file"] for key, entry in headers.items()}
    assert index["metadata"]["total_size"] == sum(entry["bytes"] for entry in headers.values())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (copy / name).read_bytes() == (original / name).read_bytes()


def params_on(path, **choice):
    """The project's parameters on one model."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    runs = [["mine", "mixed", "half", solve] for solve in ("average", "mergemoe")]  # pruning wants a known router
    return read_params({**params, "model": {"mine": {"path": str(path), **choice}}, "runs": runs})


def test_what_the_copy_will_be_is_known_from_the_original_headers(made):
    original, copy, *_ = made
    after = {
        key: {**entry, "file": ""}
        for key, entry in quantization.dequantized_headers(model_folder.read_headers(original)).items()
    }
    assert after == {key: {**entry, "file": ""} for key, entry in model_folder.read_headers(copy).items()}
    assert expert_headers.count_experts(original) == expert_headers.count_experts(copy)
    before, params = params_on(original, dequantize=True), params_on(copy)
    assert plan.run_size(before, before.all_runs()[0]) == plan.run_size(params, params.all_runs()[0])
    assert plan.count_jobs(before)["convert"] == 1
    assert plan.count_jobs(params)["convert"] == 0
    weights = sum(tensor.nbytes for tensor in tensors_of(copy).values())
    assert plan.disk(before)["plain copies"] == weights


def test_a_plain_checkpoints_headers_stay_as_they_are(tiny):
    assert quantization.dequantized_headers(model_folder.read_headers(tiny)) == model_folder.read_headers(tiny)


def test_one_part_of_the_model_is_in_memory_at_a_time(fp8, tmp_path, monkeypatch):
    model, held = QuantizedModel(fp8, torch.bfloat16), []

    def save(tensors, path, **_):
        held.append({name for name, parameter in model.model.named_parameters() if not parameter.is_meta})

    monkeypatch.setattr("mergemoe.models.dequantize.save_file", save)
    for wanted in model.parts():
        model.write(wanted, tmp_path / "shard")
    assert held[0] == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    for i, names in enumerate(held[1:]):
        assert f"model.layers.{i}.self_attn.q_proj.weight" in names
        assert all(name.startswith(f"model.layers.{i}.") for name in names)
    assert len(held) == 3


# q_proj has 32 rows a head: 192 are blocks of 128 and 64, and 3 does not divide the 320 of three blocks.
@pytest.mark.parametrize("heads", [6, pytest.param(10, marks=pytest.mark.full)])
def test_blocks_cut_off_at_an_edge_keep_their_size(tmp_path, heads):
    expected = make_fp8(tmp_path / "original", num_attention_heads=heads)
    dequantize_checkpoint(tmp_path / "original", tmp_path / "copy")
    key = "model.layers.0.self_attn.q_proj.weight"
    assert expected[key].shape == (32 * heads, 128)
    np.testing.assert_array_equal(bits(tensors_of(tmp_path / "copy")[key]), expected[key])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("model.layers.1.self_attn.q_proj.weight_scale_inv", None, "q_proj.weight is torch.float8_e4m3fn"),
        ("model.layers.1.mlp.experts.3.up_proj.weight_scale_inv", None, "8 weights vs 7 scales"),
        ("model.layers.1.self_attn.k_proj.weight", None, "such as model.layers.1.self_attn.k_proj"),
        ("model.norm.weight", None, "such as model.norm.weight"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", torch.ones(3, 2), "not divisible by scale grid"),
        ("model.layers.0.mlp.gate_proj.weight", torch.zeros(128, 128).to(torch.float8_e4m3fn), "but config.json gives"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(fp8, tmp_path, key, change, message):
    tensors = load_file(fp8 / "model.safetensors")
    assert key in tensors
    tensors = {**tensors, key: change} if change is not None else {k: t for k, t in tensors.items() if k != key}
    damaged = shutil.copytree(fp8, tmp_path / "damaged")
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(UserError, match=message):
        dequantize_checkpoint(damaged, tmp_path / "copy")


@pytest.mark.parametrize(
    ("settings", "choice", "message"),
    [
        ({"quant_method": "fp8"}, {}, r"quantized \(fp8\)\. .* Set `dequantize: true` beside `path`"),
        ({"quant_method": "mxfp4"}, {}, r"quantized \(mxfp4\)\. .* Set `dequantize: true` beside `path`"),
        ({"quant_method": "gptq"}, {}, r"quantized by gptq\. .* transformers dequantizes only fp8, mxfp8, mxfp4\."),
        ({"quant_method": "awq"}, {"dequantize": True}, r"quantized by awq\. .* transformers dequantizes only"),
        ({"load_in_4bit": True}, {"dequantize": True}, r"by an unnamed method\. .* transformers dequantizes only"),
        (None, {"dequantize": True}, "has no quantization_config. Remove the key"),
    ],
)
def test_the_refusal_names_the_model_the_method_and_the_way_out(tiny, tmp_path, monkeypatch, settings, choice, message):
    monkeypatch.chdir(ROOT)
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = model_folder.read_config(folder) | ({"quantization_config": settings} if settings else {})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"^model.mine: {folder}: .*{message}"):
        preflight.check_params(params_on(folder, **choice))


def test_a_quantized_text_model_is_seen():
    config = {"text_config": {"quantization_config": {"quant_method": "fp8"}, "hidden_size": 8}}
    with pytest.raises(UserError, match="quantized"):
        quantization.check_quantization(config, dequantize=False)
    assert quantization.unquantized_config(config) == {"text_config": {"hidden_size": 8}}


def test_the_stage_writes_the_copy_with_the_digests_of_both(fp8, tmp_path, monkeypatch):
    out = tmp_path / "results" / "convert" / "mine"
    cfg = json.dumps({"path": str(fp8), "revision": None, "dequantize": True})
    monkeypatch.setattr(sys, "argv", ["stage", "--cfg", cfg, "--code", "0", "--out", str(out)])
    stage.main()
    written = store.read_json(out / "provenance.json")
    assert written["files"].keys() == {path.name for path in out.iterdir()} - {"provenance.json"}
    assert written["original"].keys() == {path.name for path in fp8.iterdir()}
    store.check_files(out, written["files"])
    store.check_files(fp8, written["original"])
    assert [entry["experts"] for entry in layout.describe_layout(out)["layers"]] == [8]


def test_a_damaged_copy_is_refused_by_layout_and_named_in_its_provenance(fp8, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("results/convert/mine")
    cfg = json.dumps({"path": str(fp8), "revision": None, "dequantize": True})
    monkeypatch.setattr(sys, "argv", ["stage", "--cfg", cfg, "--code", "0", "--out", str(out)])
    stage.main()
    described = ["stage", "--cfg", json.dumps({"path": str(out)}), "--code", "0", "--out", "results/layout/mine.json"]
    monkeypatch.setattr(sys, "argv", described)
    layout_stage.main()
    made = store.read_json("results/layout/mine.json")["provenance"]
    assert made["inputs"] == {
        f"{out}/provenance.json": store.read_json(out / "provenance.json")["provenance"]["payload"]
    }
    shard = min(out.glob("*.safetensors"))
    whole = shard.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole):
        chance.write_unseen(shard, content)
        if content == whole:
            (out / "chat_template.jinja").touch()
        with pytest.raises(UserError, match=f"{shard.name} is not the file|chat_template.jinja was not written"):
            layout_stage.main()


def test_a_hub_models_files_must_be_those_that_were_fetched(fp8, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commit, out = "0" * 40, tmp_path / "results" / "convert" / "mine"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cache = shutil.copytree(fp8, tmp_path / "models--some--moe" / "snapshots" / commit)
    files = {path.name: {"size": path.stat().st_size, "sha256": digests.sha256(path)} for path in cache.iterdir()}
    other = {"config.json": {"size": 1, "sha256": "1" * 64}}
    hub_record.write_fetch_record("some/moe", commit, files | other)
    cfg = json.dumps({"path": "some/moe", "revision": commit, "dequantize": True})
    monkeypatch.setattr(sys, "argv", ["stage", "--cfg", cfg, "--code", "0", "--out", str(out)])
    with pytest.raises(UserError, match=r"config.json: its sha256 is .*, but .* states"):
        stage.main()
    assert not out.exists()
    hub_record.write_fetch_record("some/moe", commit, files)
    stage.main()
    assert str(tmp_path) not in (out / "provenance.json").read_text()


@pytest.mark.full
@pytest.mark.workflow
@pytest.mark.timeout(300)
def test_the_workflow_refuses_the_checkpoint_or_reads_its_copy_everywhere(tmp_path):
    project = copy_project(tmp_path / "project")

    def dry(choice):
        text = (ROOT / "tests" / "tiny" / "params.yaml").read_text().replace("{path: tiny-moe}", choice)
        (project / "params.yaml").write_text(text)
        return snakemake(project, "--dry-run", "--printshellcmds")

    plain = dry("{path: tiny-moe}")
    assert plain.returncode == 0
    assert "stages.convert" not in plain.stdout
    make_fp8(project / "tiny-moe")
    refused = dry("{path: tiny-moe}")
    assert refused.returncode != 0
    assert "model.tiny: tiny-moe: the checkpoint is quantized (fp8)" in refused.stdout
    assert "Set `dequantize: true`" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr
    planned = dry("{path: tiny-moe, dequantize: true}")
    assert planned.returncode == 0
    assert re.search(r"^convert +1$", planned.stdout, re.MULTILINE)
    commands = re.findall(r"python -m stages\.(\w+) (.*)", planned.stdout)
    assert {stage for stage, _ in commands} >= {"convert", "layout", "capture", "reference", "evaluate", "report"}
    assert {stage for stage, options in commands if "tiny-moe" in options} == {"convert", "assemble"}  # for its card
    assert all('"path":"results/convert/tiny"' in options for stage, options in commands if stage == "layout")
    full = [options for _, options in commands if "--out results/scores/tiny/full" in options and "--model" in options]
    assert full and all("--model results/convert/tiny " in options for options in full)
