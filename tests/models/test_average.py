"""The average of checkpoints: equal to numpy's, refused where they are not of one run, compressed like any model."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_project import ROOT, copy_project, make_tiny, snakemake
from transformers import AutoModelForCausalLM

from mergemoe.artifacts import digests
from mergemoe.errors import UserError
from mergemoe.models.averaging import average, averages
from mergemoe.models.averaging.average import average_checkpoints
from mergemoe.workflow.config.model import Model


def checkpoints(folder, count=3, **settings):
    """Checkpoints of one run: the same model with weights that moved a little."""
    made = [make_tiny(folder / f"step-{i}", **settings) for i in range(count)]
    for i, path in enumerate(made):
        generator = torch.Generator().manual_seed(i)
        tensors = load_file(path / "model.safetensors")
        moved = {
            name: t + (0.05 * torch.randn(t.shape, generator=generator)).to(t.dtype) for name, t in tensors.items()
        }
        save_file(moved, path / "model.safetensors", {"format": "pt"})
    return made


@given(by=st.sampled_from(["sma", "wma", "ema"]), count=st.integers(1, 30), alpha=st.floats(0.01, 1.0))
def test_weights_sum_to_one_and_are_those_of_the_recursion(by, count, alpha):
    found = averages.weights(by, count, alpha)
    assert len(found) == count and sum(found) == pytest.approx(1)
    values = np.random.default_rng(count).standard_normal(count)
    expected = {"sma": values.mean(), "wma": np.average(values, weights=np.arange(count) + 1)}
    moving = values[0]
    for value in values[1:]:
        moving = alpha * value + (1 - alpha) * moving
    assert values @ found == pytest.approx(expected.get(by, moving))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by", ["sma", "wma", "ema"])
def test_the_average_is_numpys_and_loads(tmp_path, monkeypatch, by, dtype):
    folders = checkpoints(tmp_path)
    for path in folders:
        tensors = {name: part.to(dtype) for name, part in load_file(path / "model.safetensors").items()}
        save_file(tensors | {"extra.buffer": torch.arange(3)}, path / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(average, "SHARD", 50_000)  # several files
    shares = averages.weights(by, 3, 0.3)
    average_checkpoints(folders, shares, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    found = {name: part for file in (tmp_path / "out").glob("*.safetensors") for name, part in load_file(file).items()}
    each = [load_file(path / "model.safetensors") for path in folders]
    assert found.keys() == each[0].keys()
    assert torch.equal(found.pop("extra.buffer"), torch.arange(3))
    for name, part in found.items():
        expected = np.average([one[name].double().numpy() for one in each], axis=0, weights=shares)
        assert part.dtype == dtype
        unit = 2.0**-23 if dtype == torch.float32 else 2.0**-8
        np.testing.assert_allclose(part.double().numpy(), expected, rtol=unit, atol=unit * 1e-1)
    for path in (ROOT / "data/demo-moe").glob("tokenizer*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.1.mlp.gate.weight"


def config(**changes):
    return lambda folder: edit(folder / "config.json", lambda content: content.update(changes))


def tensors(change):
    return lambda folder: edit_tensors(folder, change)


REFUSED = {
    "another setting": (config(rms_norm_eps=1e-3), "rms_norm_eps is 0.001"),
    "a setting more": (config(own=1), "own is 1 in config.json, not None"),
    "another shape": (tensors(lambda t: t.update({NAME: t[NAME][:7].clone()})), f"the tensor {NAME} is"),
    "another dtype": (tensors(lambda t: t.update({NAME: t[NAME].float()})), f"the tensor {NAME} is"),
    "a tensor less": (tensors(lambda t: t.pop(NAME)), f"the tensor {NAME} is None"),
    "another tokenizer": (
        lambda folder: edit(folder / "tokenizer.json", lambda content: content.update(version="2")),
        "tokenizer.json is another",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is another"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_checkpoints_of_other_models_are_refused_by_name(tmp_path, change):
    folders = checkpoints(tmp_path, 2)
    work, said = REFUSED[change]
    work(folders[0])
    with pytest.raises(UserError, match=re.escape(said)) as error:
        average_checkpoints(folders, [0.5, 0.5], tmp_path / "out")
    assert str(folders[0]) in str(error.value) and "checkpoints of one training run, the oldest first" in str(
        error.value
    )
    assert not (tmp_path / "out").exists()


def test_whole_numbers_and_quantized_weights_have_no_average(tmp_path):
    folders = checkpoints(tmp_path, 2)
    for i, folder in enumerate(folders):
        edit_tensors(folder, lambda tensors, i=i: tensors.update(buffer=torch.tensor([i])))
    with pytest.raises(UserError, match="the whole numbers of buffer are others"):
        average_checkpoints(folders, [0.5, 0.5], tmp_path / "out")
    for folder in folders:
        edit(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "fp8"}))
    with pytest.raises(UserError, match="is quantized, and such weights have no average"):
        averages.check_alike(folders)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"average": {"paths": ["a"]}}, "at least 2"),
        ({"average": {"paths": ["a", "b", "a"]}}, "`paths` names a twice"),
        ({"average": {"paths": ["a", "b"]}, "path": "c"}, "`average` goes with none of path"),
        ({"average": {"paths": ["a", "b"]}, "dequantize": True}, "`average` goes with none of dequantize"),
        ({"average": {"paths": ["a", "b"], "by": "mean"}}, "'sma', 'wma' or 'ema'"),
        ({"average": {"paths": ["a", "b"], "alpha": 0.0}}, "greater than 0"),
        ({"average": {}}, "paths"),
        ({"average": None}, "path: it is missing"),
        ({}, "path: it is missing"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Model(**choice)


def test_a_model_without_an_average_has_the_parameters_that_it_had():
    assert Model(path="a").model_dump() == {"path": "a", "revision": None, "dequantize": False}
    averaged = Model(average={"paths": ["a", "b"]})
    assert averaged.path == "b" and averaged.copied() and averaged.paths() == ["a", "b"]
    assert averaged.model_dump()["average"] == {"paths": ["a", "b"], "by": "sma", "alpha": 0.2}


@pytest.mark.full
@pytest.mark.workflow
@pytest.mark.timeout(600)
def test_a_run_compresses_the_average_and_sees_a_checkpoint_that_changes(tmp_path):
    project = copy_project(tmp_path / "project")
    folders = checkpoints(project, 3)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["model"] = {"mean": {"average": {"paths": [path.name for path in folders], "by": "wma"}}}
    params["runs"] = [["mean", "mixed", "half", "average"]]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(project)
    assert done.returncode == 0, done.stderr
    average_checkpoints(folders, averages.weights("wma", 3, 0.2), tmp_path / "expected")
    copy = project / "results/convert/mean"
    assert digests.sha256(copy / "model.safetensors") == digests.sha256(tmp_path / "expected/model.safetensors")
    listed = json.loads((copy / "provenance.json").read_text())["original"]
    assert listed["step-1"]["model.safetensors"] == digests.sha256(folders[1] / "model.safetensors")
    assert "mean" in json.loads((project / "results/metrics.json").read_text())
    card = (project / "results/models/mean/mixed/half/average/README.md").read_text()
    assert "step-2" in card
    edit_tensors(folders[0], lambda tensors: tensors[NAME].mul_(2))
    again = snakemake(project, "--dry-run")
    assert re.search(r"^convert +1$", again.stdout, re.MULTILINE)
    shutil.rmtree(folders[0])
    gone = snakemake(project, "--dry-run")
    assert gone.returncode != 0 and "step-0" in gone.stdout + gone.stderr
