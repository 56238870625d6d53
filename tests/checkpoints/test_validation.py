"""Bad checkpoints: each fault is told by its own words, from headers alone or, for weights, by the first job."""

import json
import re
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_project import ROOT, copy_project, snakemake

from mergemoe.checkpoints import finite, model_folder, validation
from mergemoe.errors import UserError
from mergemoe.models import supported
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import preflight, preflight_texts
from stages import layout as stage

CONFIG = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"


def tensors(layer):
    """One layer: a norm and four experts."""
    experts_of = {
        f"model.layers.{layer}.mlp.experts.{e}.{role}_proj.weight": torch.ones((8, 6) if role == "down" else (6, 8))
        for e in range(4)
        for role in ("gate", "up", "down")
    }
    return experts_of | {f"model.layers.{layer}.input_layernorm.weight": torch.ones(8)}


def write_json(path, content):
    path.write_text(json.dumps(content))


def change_json(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def change_shard(path, **changes):
    """Write a shard again with other tensors: `key=None` takes one out."""
    content = load_file(path) | {key.replace("__", "."): tensor for key, tensor in changes.items()}
    save_file({key: tensor for key, tensor in content.items() if tensor is not None}, path)


@pytest.fixture
def folder(tmp_path):
    """A whole checkpoint: a layer in each of two shards."""
    made = tmp_path / "made"
    made.mkdir()
    write_json(made / "config.json", CONFIG)
    for layer, name in enumerate(SHARDS):
        save_file(tensors(layer), made / name)
    write_json(made / model_folder.INDEX, {"weight_map": {key: n for i, n in enumerate(SHARDS) for key in tensors(i)}})
    return made


def parse(folder):
    """What the Snakefile does with a checkpoint before the first job."""
    config = yaml.safe_load((ROOT / "params.yaml").read_text())
    config |= {"model": {"mine": {"path": str(folder)}}, "runs": [["mine", "mixed", "half", "mergemoe"]]}
    params = read_params(config | {"evaluate": {**config["evaluate"], "tasks": {}}})
    preflight.check_params(params)
    return params


def truncate(folder):
    content = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(content[:-100])


def truncate_the_header(folder):
    content = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(content[:100])


def spoil_the_header(folder):
    content = bytearray((folder / SHARDS[1]).read_bytes())
    content[8] = ord("?")
    (folder / SHARDS[1]).write_bytes(content)


def one_key_twice(folder):
    change_shard(folder / SHARDS[0], **{DOWN: torch.ones(8, 6)})


def pickles_only(folder):
    for name in (*SHARDS, model_folder.INDEX):
        (folder / name).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def nothing_left(folder):
    for name in (*SHARDS, model_folder.INDEX):
        (folder / name).unlink()


def drop_from_shard(folder):
    change_shard(folder / SHARDS[1], **{DOWN: None})


def write_header(folder, content):
    text = json.dumps(content).encode()
    (folder / SHARDS[1]).write_bytes(len(text).to_bytes(8, "little") + text)


def drop_an_expert(folder):
    """From shard and index alike."""
    gone = {key: None for key in tensors(1) if ".experts.3." in key}
    change_shard(folder / SHARDS[1], **gone)
    stored_in = json.loads((folder / model_folder.INDEX).read_text())["weight_map"]
    change_json(folder / model_folder.INDEX, weight_map={k: name for k, name in stored_in.items() if k not in gone})


def other_file(folder):
    stored_in = json.loads((folder / model_folder.INDEX).read_text())["weight_map"]
    change_json(folder / model_folder.INDEX, weight_map=stored_in | {DOWN: SHARDS[0]})


def config_without(key):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        del config[key]
        write_json(folder / "config.json", config)

    return damage


def config_with(**changes):
    return lambda folder: change_json(folder / "config.json", **changes)


def retyped(dtype, key=""):
    def damage(folder):
        save_file({k: t.to(dtype) if key in k else t for k, t in tensors(1).items()}, folder / SHARDS[1])

    return damage


FAULTS = {
    "a truncated shard": (truncate, r"00002.safetensors has [\d,]+ bytes, but its header promises [\d,]+\. .* again"),
    "a shard cut in its header": (truncate_the_header, r"has 100 bytes and is truncated inside its header of [\d,]+\."),
    "a spoilt header": (
        spoil_the_header,
        r"00002.safetensors does not begin with a safetensors header \((JSON|Unicode)",
    ),
    "a missing shard": (
        lambda f: (f / SHARDS[1]).unlink(),
        f"1 of the 2 shards in .* are missing, such as {SHARDS[1]}",
    ),
    "a missing tensor": (drop_from_shard, f"and the shards disagree on 1 tensors: {DOWN} .* is in no shard"),
    "an index of another version": (
        other_file,
        f"on 1 tensors: {DOWN} should be in {SHARDS[0]} and is in {SHARDS[1]}",
    ),
    "an index without a map": (lambda f: write_json(f / model_folder.INDEX, {}), "index.json has no weight_map"),
    "a damaged index": (lambda f: (f / model_folder.INDEX).write_text("{"), "index.json is not JSON"),
    "no index": (lambda f: (f / model_folder.INDEX).unlink(), "holds 2 safetensors files, .* Download that file, too"),
    "a key in two shards": (
        one_key_twice,
        f"both {SHARDS[0]} and {SHARDS[1]} hold {DOWN}. The folder holds shards of different",
    ),
    "two checkpoints": (
        lambda f: save_file(tensors(0), f / model_folder.SINGLE),
        "holds both .* two checkpoints in one",
    ),
    "pickled weights": (pickles_only, r"pytorch_model.bin\). A pickle .* convert it once: .*save_pretrained\('NEW'\)"),
    "no weights": (nothing_left, r"holds no \*.safetensors file"),
    "whole numbers outside": (
        retyped(torch.int32, "norm"),
        "layernorm.weight is stored as I32, but config.json has no",
    ),
    "whole numbers": (retyped(torch.int8, "experts"), "is stored as I8, but config.json has no quantization_config"),
    "8-bit floats": (retyped(torch.float8_e4m3fn, "experts"), "is stored as F8_E4M3, but config.json has no"),
    "two dtypes in a layer": (
        retyped(torch.bfloat16, "down"),
        r"layer 1 are stored as BF16 \(.*\) and F32 \(.*one dtype",
    ),
    "a damaged config.json": (lambda f: (f / "config.json").write_text('{"model'), "config.json is not JSON"),
    "a config.json of another kind": (lambda f: write_json(f / "config.json", []), "config.json holds a list"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "no model_type": (config_without("model_type"), "config.json has no model_type"),
    "a compressed checkpoint": (
        config_with(mergemoe={"format": 1}),
        "is a compressed checkpoint. .* Name the original",
    ),
    "another number of experts": (config_with(num_experts=8), "states 8 experts, but layer 0 stores 4"),
    "an expert lost": (drop_an_expert, "states 4 experts, but layer 1 stores 3"),
    "more working experts than there are": (config_with(num_experts_per_tok=5), "5 experts work on a token, .* has 4"),
    "a pointer of git-LFS": (
        lambda f: (f / SHARDS[1]).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is text, not a safetensors file",
    ),
    "a header that is a list": (lambda f: write_header(f, []), r"does not begin with a safetensors header \(Type"),
    "a header without places": (
        lambda f: write_header(f, {DOWN: {"dtype": "F32"}}),
        r"does not begin with a safetensors header \(Key",
    ),
    "an index that names no files": (
        lambda f: write_json(f / model_folder.INDEX, {"weight_map": {DOWN: 1}}),
        "weight_map does not name a file for every tensor",
    ),
    "another number of layers": (config_with(num_hidden_layers=3), "states 3 layers, but the tensors have 2"),
}


def test_a_whole_checkpoint_passes_before_the_first_job(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_its_own_words_before_the_first_job(fault, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=f"(?s)^model.mine: .*{words}") as error:
        parse(folder)
    told = [name for name, (_, other) in FAULTS.items() if re.search(f"(?s){other}", str(error.value))]
    assert told == [fault]


@pytest.mark.parametrize(
    "stated",
    [
        {"n_routed_experts": 9},
        {"num_local_experts": 9},
        {"moe_num_experts": 9},
        {"ffn_config": {"moe_num_experts": 9}},
        {"text_config": {"num_local_experts": 9, "num_hidden_layers": 2}},
    ],
    ids=lambda stated: ".".join(
        [*stated, *(next(iter(stated.values())) if isinstance(next(iter(stated.values())), dict) else [])]
    ),
)
def test_the_number_of_experts_is_compared_under_every_name(stated, folder):
    write_json(folder / "config.json", {"model_type": "qwen3_moe", "num_hidden_layers": 2} | stated)
    with pytest.raises(UserError, match="states 9 experts, but layer 0 stores 4"):
        validation.check_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "newest_moe", "auto_map": {"AutoModel": "modeling_new.Newest"}},
            r"code of its own \(\{'AutoModel': 'modeling_new",
        ),
        ({"model_type": "newest_moe"}, "newer than this version, or its name in config.json is wrong"),
    ],
)
def test_an_architecture_without_code_is_refused_by_the_layout_and_no_code_is_run(config, words, folder, monkeypatch):
    write_json(folder / "config.json", CONFIG | config)
    (folder / "modeling_new.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UserError, match=f"does not know the model_type 'newest_moe'.*{words}"):
        run_stage(folder, monkeypatch)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="^model.mine: .*does not know the model_type"):
        preflight_texts.check_texts(parse(folder))


def test_the_code_of_a_tokenizer_is_not_run_either(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UserError, match="^model.mine: .* has no tokenizer for transformers .*Add the tokenizer.json"):
        preflight_texts.check_texts(parse(folder))


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek"])
def test_code_that_a_checkpoint_brings_in_vain_is_no_fault(model_type, folder):
    change_json(folder / "config.json", model_type=model_type, auto_map={"AutoModel": "modeling_new.Newest"})
    supported.check_architecture(folder)


NO_NUMBERS = {
    "nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, which is no number"),
    "infinite": ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    "too large": ({"rms_norm_eps": "1e999"}, "rms_norm_eps is inf"),
    "deep": ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta is nan"),
    "in a list": ({"layer_scales": [1.0, float("nan")]}, "layer_scales is nan"),
    "no angle": ({"rope_theta": 0}, "rope_theta is int 0, but must be a number above 0"),
    "no deep angle": ({"text_config": {"rope_parameters": {"rope_theta": -1.0}}}, "rope_theta is float -1.0"),
    "text for an angle": ({"rope_theta": "1e6"}, "rope_theta is str '1e6'"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_numbers_of_config_json_that_nothing_can_be_computed_with_are_named(name, folder):
    changes, words = NO_NUMBERS[name]
    change_json(folder / "config.json", **changes)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"1e999"', "1e999"))
    with pytest.raises(UserError, match=words):
        validation.check_checkpoint(folder)


@pytest.mark.parametrize("depth", [300, 600, 900, 100_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_a_deep_config_json_is_read_or_refused(folder, depth, start, end):
    path = folder / "config.json"
    path.write_text(f'{{"deep": {start * depth}1{end * depth}, {path.read_text().strip()[1:]}')
    try:
        validation.check_checkpoint(folder)
    except UserError as error:
        assert "config.json is not JSON (maximum recursion depth" in str(error) and depth > 300


def test_a_bound_may_be_infinite(folder):
    change_json(folder / "config.json", time_step_limit=[0.0, float("inf")], rope_theta=None)
    validation.check_checkpoint(folder)


GENERATION = {
    "cut": ('{"eos_token_id": 1, "temp', "is not JSON"),
    "a list": ("[1]", "holds a list, not a JSON object"),
    "nan": ('{"temperature": NaN}', "temperature is nan"),
    "a word for a token": ('{"eos_token_id": "x"}', "eos_token_id is 'x', but must be the number of a token"),
    "a word among tokens": ('{"eos_token_id": [1, "x"]}', "eos_token_id is .* but must be the number of a token"),
    "a truth for a token": ('{"pad_token_id": true}', "pad_token_id is True, but must be the number of a token"),
}


@pytest.mark.parametrize("name", GENERATION)
def test_a_generation_config_that_transformers_would_leave_out_is_refused(name, folder):
    content, words = GENERATION[name]
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=f"generation_config.json.*{words}"):
        validation.check_checkpoint(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "pad_token_id": null, "top_p": 0.9}')
    validation.check_checkpoint(folder)


def run_stage(folder, monkeypatch):
    """The first job, in this process."""
    arguments = ["layout", "--cfg", json.dumps({"path": str(folder)}), "--code", "", "--out", str(folder / "out.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    stage.main()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_counted_and_named_by_the_first_job(number, dtype, folder, monkeypatch):
    bad = torch.ones(8, 6, dtype=dtype)
    bad[3, 1:4] = number
    change_shard(folder / SHARDS[1], **{DOWN: bad})
    nan = 3 if number != number else 0
    monkeypatch.setattr(stage.layout, "describe_layout", lambda *args: {})  # which refuses so small a checkpoint
    with pytest.raises(UserError, match=rf"{DOWN} holds {nan} NaN and {3 - nan} infinite numbers \(1 tensors"):
        run_stage(folder, monkeypatch)


def test_numbers_are_counted_over_the_chunks_of_a_large_tensor(folder, monkeypatch):
    monkeypatch.setattr(finite, "_CHUNK", 12)  # two rows of six
    bad = torch.ones(8, 6)
    bad[0, 0] = bad[7, 5] = bad[4, 2] = float("nan")
    bad[5, 5] = float("inf")
    change_shard(folder / SHARDS[1], **{DOWN: bad})
    with pytest.raises(UserError, match="holds 3 NaN and 1 infinite numbers"):
        finite.check_finite(folder)


def test_finite_weights_whole_numbers_and_empty_tensors_are_no_fault(folder):
    save_file(
        {"map": torch.arange(4), "empty": torch.ones(0, 3), "one": torch.tensor(2.0), **tensors(1)}, folder / SHARDS[1]
    )
    finite.check_finite(folder)


@pytest.mark.full
@pytest.mark.workflow
def test_snakemake_stops_at_a_missing_shard_before_a_job_ran(folder, tmp_path):
    project = copy_project(tmp_path / "project")
    params = yaml.safe_load((project / "params.yaml").read_text()) | {"model": {"tiny": {"path": str(folder)}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / SHARDS[1]).unlink()
    stopped = snakemake(project)
    assert stopped.returncode != 0
    assert f"model.tiny: {folder}: 1 of the 2 shards in" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (project / "results").exists() and not (project / "logs").exists()
