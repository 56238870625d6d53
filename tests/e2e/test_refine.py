"""Runs with a refine: what it starts from, what it leaves alone, what it shares with runs without one."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_project import snakemake

import mergemoe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

RUN = "results/refine/tiny/mixed/half/mergemoe/tuned"
MODELS = "results/models/tiny/mixed"


@pytest.fixture
def changed(finished, tmp_path):
    """A function that changes one choice of a section in a copy of the finished project, and makes some targets."""

    def make(section, name, keys, *targets):
        project = shutil.copytree(finished, tmp_path / "project")
        params = yaml.safe_load((project / "params.yaml").read_text())
        params[section][name] |= keys
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        done = snakemake(project, *targets)
        assert done.returncode == 0, done.stderr
        return project

    return make


def test_a_refine_ends_surely_nearer_to_the_output_or_with_the_bytes_of_the_solve(finished):
    for layer, kept in (("001", 0), ("002", 8)):  # in layer 1, only one of the two held-out sequences gains
        record = json.loads((finished / f"{RUN}/layer_{layer}.json").read_text())
        first, last = (record["history"][place]["heldout"] for place in (0, -1))
        assert last < first and record["best_step"] == kept
        assert (record["output_error"] != record["start_error"]) == bool(kept)
        solved, refined = (
            load_file(finished / f"results/{folder}/layer_{layer}.safetensors")
            for folder in ("solve/tiny/mixed/half/mergemoe", "refine/tiny/mixed/half/mergemoe/tuned")
        )
        assert solved.keys() == refined.keys() and torch.equal(solved["expert_map"], refined["expert_map"])
        same = all(
            part.shape == solved[name].shape and torch.equal(part, solved[name]) for name, part in refined.items()
        )
        assert same == (not kept) and (not kept or refined["groups"].tolist() == [0, 1, 2, 3])
    start = json.loads((finished / "results/solve/tiny/mixed/half/mergemoe/layer_001.json").read_text())
    begun = json.loads((finished / f"{RUN}/layer_001.json").read_text())["start_error"]
    assert begun == pytest.approx(start["output_error"], rel=1e-4)


def test_no_step_leaves_the_bytes_of_the_solve(changed):
    project = changed("refine", "tuned", {"steps": 0}, f"{MODELS}/half/mergemoe+tuned")
    weights = [project / f"{MODELS}/half/{name}/model.safetensors" for name in ("mergemoe", "mergemoe+tuned")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_layer_outside_the_range_of_the_grouping_is_left_alone(changed):
    project = changed("cluster", "half", {"layers": "1-1"}, f"{RUN}/layer_002.safetensors")
    record = json.loads((project / f"{RUN}/layer_002.json").read_text())
    assert record["output_error"]["heldout"] == record["steps"] == 0
    refined = load_file(project / f"{RUN}/layer_002.safetensors")
    assert not len(refined["groups"]) and refined["expert_map"].tolist() == list(range(8))


@pytest.mark.full
def test_the_router_of_a_pruned_layer_is_fitted_and_the_checkpoint_is_stock(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["cluster"]["salient"] = {"by": "saliency", "experts": 0.5}
    params["solve"]["reap"] = {"method": "reap"}
    params["refine"]["routed"] = {"by": "layer", "steps": 8, "batch": 64, "rate": 0.3, "parts": ["router"]}
    params["runs"] += [["tiny", "mixed", "salient", "reap", *more] for more in ([], ["routed"])]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    folders = [f"{MODELS}/salient/{name}" for name in ("reap", "reap+routed")]
    done = snakemake(project, *folders)
    assert done.returncode == 0, done.stderr
    plain, routed = (load_file(project / folder / "model.safetensors") for folder in folders)
    other = {name for name in plain if not torch.equal(plain[name], routed[name])}
    assert other and other <= {f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)}  # those that surely gain
    assert type(mergemoe.load(project / folders[1], "cpu")).__module__.startswith("transformers.")
