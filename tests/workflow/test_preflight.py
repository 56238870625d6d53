"""What is found before the first job: parameters that do not fit the model, its family or the texts."""

import copy
import shutil

import architectures
import pytest
from good_params import GOOD
from tiny_project import ROOT, make_tiny
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import preflight, preflight_texts


def small(tiny, **changes):
    """The demo's parameters on the tiny model, without a refine."""
    config = copy.deepcopy(GOOD)
    del config["refine"]
    config["model"] = {"tiny": {"path": str(tiny)}}
    config["cluster"] = {"half": {"by": "weights", "experts": 4, **changes}}
    config["runs"] = "all"
    return config


def passes_or_says(config, message):
    if message is None:
        preflight.check_params(read_params(config))
    else:
        with pytest.raises(UserError, match=message):
            preflight.check_params(read_params(config))


def test_preflight_passes_what_can_run(tiny, monkeypatch):
    monkeypatch.chdir(ROOT)
    preflight.check_params(read_params(small(tiny)))
    preflight_texts.check_texts(read_params(small(tiny)))


def test_preflight_names_what_cannot_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    dense = tmp_path / "dense"
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(dense)
    missing_text, no_model, no_revision, no_experts = small(tiny), small(tiny), small(tiny), small(tiny)
    missing_text["calibrate"]["mixed"]["source"] = "data/calibration/none.jsonl"
    no_model["model"]["tiny"]["path"] = "data/nowhere"
    no_revision["model"]["tiny"]["path"] = "Qwen/Qwen3-30B-A3B"
    no_experts["model"]["tiny"]["path"] = str(dense)
    for config, message in [
        (small(tiny, experts=9), r"asks for more experts than the layer has \(8\)"),
        (small(tiny, layers="0"), "contains no MoE layer of tiny. It has 1, 2"),
        (missing_text, "calibrate.mixed.source: data/calibration/none.jsonl: there is no such file"),
        (no_model, "data/nowhere: there is no config.json"),
        (no_revision, "Qwen/Qwen3-30B-A3B: there is no config.json.* hub, add `revision` with a full commit hash"),
        (no_experts, r"\(qwen3\): no layer has experts"),
    ]:
        with pytest.raises(UserError, match=message):
            preflight.check_params(read_params(config))
    unknown = small(tiny)
    unknown["evaluate"]["tasks"] = {"blimpp": {"include": "data/blimp"}}
    with pytest.raises(UserError, match="evaluate.tasks.blimpp: no .* in data/blimp has `task: blimpp`"):
        preflight.check_params(read_params(unknown))
    mute = tmp_path / "mute"
    shutil.copytree(tiny, mute, ignore=shutil.ignore_patterns("tokenizer*"))
    nothing = small(tiny)
    nothing["model"]["tiny"]["path"] = str(mute)
    with pytest.raises(UserError, match="makes no token"):
        preflight_texts.check_texts(read_params(nothing))
    short = small(tiny)
    short["calibrate"]["mixed"]["samples"] = 100_000
    with pytest.raises(UserError, match="calibrate.mixed: .* asks for 100000"):
        preflight_texts.check_texts(read_params(short))


@pytest.mark.parametrize(
    ("family", "cluster", "solve", "message"),
    [
        ("qwen3_moe", {"max_size": 2, "experts": 3}, {}, "`max_size: 2` is too small for 3 groups of 8 experts"),
        ("qwen3_moe", {"experts": 1, "budget": "error", "max_size": 8}, {}, None),
        ("qwen3_moe", {"experts": 1, "budget": "error", "holdout": 0.0}, {}, "calibrate.mixed.holdout is 0. Set it"),
        ("qwen3_moe", {"experts": 1, "budget": "usage", "holdout": 0.0}, {"ridge": 0.1}, None),
        ("qwen3_moe", {"experts": 1}, {"routing": "folded"}, "1 experts are kept, but 3 work on a token"),
        ("qwen3_moe", {"layers": "1"}, {"routing": "folded"}, r"would have \[4, 8\] experts"),
        ("qwen3_moe", {"budget": "usage"}, {"routing": "folded"}, "with `budget: usage`, measurements decide"),
        ("deepseek_v3", {"experts": 6}, {"routing": "folded"}, "first chooses among 2 groups of experts"),
        ("gpt_oss", {}, {"routing": "folded"}, "the routing rule of gpt_oss is not known"),
        ("gpt_oss", {}, {}, None),
    ],
)
def test_a_budget_and_a_routing_fit_the_model(family, cluster, solve, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = dict(cluster)
    config = small(architectures.save(family, tmp_path / family))
    config["calibrate"]["mixed"]["holdout"] = changes.pop("holdout", 0.25)
    config["cluster"]["half"] |= changes
    config["solve"] = {"joint": {"method": "joint", **solve}}
    config["evaluate"]["tasks"] = {}
    passes_or_says(config, message)


@pytest.mark.parametrize(
    ("family", "parts", "message"),
    [
        ("nemotron_h", ["gate"], r"refine.tuned on model.tiny: `parts` names gate.* Name some of up, down"),
        ("nemotron_h", ["gate", "up"], None),
        ("gpt_oss", ["gate"], None),
        ("dbrx", ["gate"], None),
    ],
)
def test_a_refine_fits_a_part_that_the_experts_have(family, parts, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(architectures.save(family, tmp_path / family))
    config["refine"] = {"tuned": {"by": "layer", "parts": parts}}
    config["solve"] = {"mergemoe": {"method": "mergemoe"}}
    config["runs"] = [["tiny", "mixed", "half", "mergemoe", "tuned"]]
    config["evaluate"] = {key: value for key, value in config["evaluate"].items() if key != "generation"}
    config["evaluate"]["tasks"] = {}
    passes_or_says(config, message)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"share": 0.25, "max_size": 2}, None),
        ({"share": 0.01}, "0.01 of 8 experts of width 24 is too small"),
        ({"share": 0.5}, None),
    ],
)
def test_a_share_leaves_a_size(cluster, message, tiny, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(tiny)
    config["cluster"] = {"half": {"by": "selection", **cluster}}
    config["solve"] = {"sized": {"method": "select", "width": "auto"}}
    passes_or_says(config, message)


def test_one_size_for_all_layers_needs_one_that_is_common(tiny, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(tiny)
    config["solve"] = {"sized": {"method": "select", "width": "auto"}}
    config["cluster"] = {"half": {"by": "selection", "share": 0.5}}
    monkeypatch.setattr(preflight, "experts_of", lambda *_: {1: 8, 2: 17})
    with pytest.raises(UserError, match="have no size in common"):
        preflight.check_params(read_params(config))
    config["cluster"]["half"]["per"] = "layer"
    preflight.check_params(read_params(config))


@pytest.mark.parametrize("solve", [{"method": "joint"}, {"method": "routed"}])
def test_auto_needs_held_out_sequences(solve, tiny, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(tiny)
    config["calibrate"]["mixed"]["holdout"] = 0.0
    config["solve"] = {"chosen": solve}
    with pytest.raises(UserError, match=r"solve.chosen.ridge is auto.*calibrate.mixed.holdout is 0"):
        preflight.check_params(read_params(config))
    config["solve"]["chosen"] = {**solve, "ridge": 0.1}
    preflight.check_params(read_params(config))


@pytest.mark.parametrize(("holdout", "held"), [(0.0, 0), (0.125, 1)])
def test_a_refine_needs_two_held_out_sequences(tiny, monkeypatch, holdout, held):
    monkeypatch.chdir(ROOT)
    config = small(tiny)
    config["calibrate"]["mixed"] |= {"samples": 8, "holdout": holdout}
    config["solve"], config["refine"] = {"plain": {"method": "average"}}, {"tuned": {"by": "layer"}}
    with pytest.raises(
        UserError, match=rf"refine.tuned on calibrate.mixed: .* takes 2 .* there are {held}. .*`holdout`"
    ):
        preflight.check_params(read_params(config))
    config["runs"] = [["tiny", "mixed", "half", "plain"]]
    preflight.check_params(read_params(config))


def test_what_no_layer_is_measured_at_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(make_tiny(tmp_path / "many", num_experts=24))
    config["cluster"]["half"] |= {"experts": 2, "budget": "error"}
    with pytest.raises(UserError, match="2 of 24 experts are kept, but `budget: error` measures no layer below 3"):
        preflight.check_params(read_params(config))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]\n", "row 1 is a list"),
        ('{}\n{"a": \n', "row 2 is not JSON"),
        ("\udcff", "cannot be read from row 1"),
        ("version https://git-lfs.github.com/spec/v1\n", "row 1 is not JSON"),
        ("", "has no rows"),
    ],
)
def test_preflight_reads_the_rows_of_tasks(tiny, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(ROOT)
    config, file = small(tiny), tmp_path / "rows.jsonl"
    file.write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "own.yaml").write_text(f"task: own\ndataset_kwargs: {{data_files: {{test: {file}}}}}\n")
    for key, task in {
        "piqa.data_files.validation": {"piqa": {"data_files": {"validation": str(file)}}},
        "own.include": {"own": {"include": str(tmp_path)}},
    }.items():
        config["evaluate"]["tasks"] = task
        with pytest.raises(UserError, match=rf"^evaluate.tasks.{key}: .*rows.jsonl:? {message}"):
            preflight_texts.check_texts(read_params(config))


def test_preflight_names_a_token_to_pad_with_that_the_model_does_not_have(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = make_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    config = small(folder)
    config["evaluate"]["tasks"] = {"blimp": {"include": "data/blimp", "limit": 2}}
    with pytest.raises(UserError, match=r"^model.tiny: .* gives the token 4096 .'\[PAD\]'"):
        preflight_texts.check_texts(read_params(config))
    config["evaluate"]["tasks"] = {}
    preflight_texts.check_texts(read_params(config))  # calibration pads with a token of the text


@pytest.mark.parametrize("damage", ["[]", "[" * 100_000, '{"model": {"vocab": 5}, "added_tokens": {"a": []}}', "{"])
def test_preflight_names_a_damaged_tokenizer(tiny, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(ROOT)
    shutil.copytree(tiny, folder := tmp_path / "model")
    (folder / "tokenizer.json").write_text(damage)
    config = small(tiny)
    config["model"]["tiny"]["path"] = str(folder)
    with pytest.raises(UserError, match="^model.tiny: .* has (no tokenizer for transformers|a tokenizer.json)"):
        preflight_texts.check_texts(read_params(config))


def test_preflight_names_a_tokenizer_of_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = small(make_tiny(tmp_path / "model", vocab_size=97))
    with pytest.raises(UserError, match="gives the token .*, but the model's embedding has 97 rows"):
        preflight_texts.check_texts(read_params(config))
