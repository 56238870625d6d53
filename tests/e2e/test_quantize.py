"""Runs with a quantization: true bytes, what they share with runs without one, and what changing it reruns."""

import json
import shutil

import pytest
import torch
import yaml
from project import run
from safetensors.torch import load_file
from tiny_project import planned, snakemake

import mergemoe
from mergemoe.artifacts import digests, store
from mergemoe.artifacts.provenance import read_provenance
from mergemoe.checkpoints import model_folder
from mergemoe.quantization import other_matrices

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600), pytest.mark.full]

CHOICES = {"g4": {"by": "gptq", "bits": 4, "group": 8}, "g2": {"by": "gptq", "bits": 2, "group": 8}}
CHOICES["d2"] = {**CHOICES["g2"], "by": "descent", "steps": 8, "batch": 64, "rest": "Q8_0"}
HALF, WHOLE = ["tiny", "mixed", "half", "mergemoe", "tuned"], ["tiny", "mixed", "whole", "average", None]
RUNS = [[*HALF, "g4"], [*HALF, "g2"], [*HALF, "d2"], [*WHOLE, "g4"], ["tiny", "mixed", "half", "average", None, "g4"]]
NAMES = [
    "half/mergemoe+tuned@g4",
    "half/mergemoe+tuned@g2",
    "half/mergemoe+tuned@d2",
    "whole/average@g4",
    "half/average@g4",
]


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """The finished project with five quantized runs; `whole` keeps every expert: the full model, quantized."""
    project = shutil.copytree(finished, tmp_path_factory.mktemp("quantize") / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["cluster"]["whole"] = {"by": "weights", "experts": 1.0}
    params["quantize"], params["runs"] = CHOICES, params["runs"] + RUNS
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    made = planned(project)
    assert made == {
        "cluster": 2, "solve": 2, "quantize": 10, "assemble": 5, "evaluate": 5, "fidelity": 5, "generate": 5,
        "report": 1,
    }  # fmt: skip
    done = snakemake(project)
    assert done.returncode == 0, done.stderr
    return project


def metrics(project):
    return json.loads((project / "results/metrics.json").read_text())["tiny"]


def test_the_size_is_that_of_the_format_and_the_plan_knows_it(project):
    told, found = run(project, "mergemoe", "plan").stdout, metrics(project)
    experts = 2 * 8 * 3 * 24 * 32  # numbers: two layers of eight
    model = project / yaml.safe_load((project / "params.yaml").read_text())["model"]["tiny"]["path"]
    others = other_matrices.saved_bytes(model_folder.read_headers(model), model_folder.read_config(model), "Q8_0")
    assert others > 0
    for name, kept, bits in zip(NAMES, (0.5, 0.5, 0.5, 1, 0.5), (4, 2, 2, 4, 4), strict=True):
        size = found["runs"][f"mixed/{name}"]["cost/bytes"]
        without = found["full"]["cost/bytes"] - 2 * experts - (others if name.endswith("@d2") else 0)
        assert size == without + kept * experts * (bits + (16 + bits) / 8) / 8
        assert f"{int(size):,}" in next(line for line in told.splitlines() if f"mixed/{name} " in line)


def test_the_plan_of_a_size_lists_what_was_measured_first(project):
    found = metrics(project)
    limit = sorted(scores["cost/bytes"] for scores in found["runs"].values())[3]
    done = run(project, "mergemoe", "plan", "--bytes", f"{limit:.0f}")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    fits = {name: scores["fidelity/kl"] for name, scores in found["runs"].items() if scores["cost/bytes"] <= limit}
    assert [line[0] for line in lines[: len(fits)]] == sorted(fits, key=fits.__getitem__)
    assert all(line[3] == "–" and int(line[1].replace(",", "")) <= limit for line in lines[len(fits) :])
    path = project / "params.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("bits: 4", "bits: 5"))
        lines = run(project, "mergemoe", "plan", "--bytes", "1GB").stdout.splitlines()
        assert {line.split()[3] for line in lines if "@g4 " in line} == {"–"}  # measured with 4 bits
        assert "–" not in {line.split()[3] for line in lines if f"mixed/{NAMES[1]} " in line}
    finally:
        path.write_text(before)
    wrong = run(project, "mergemoe", "plan", "--bytes", "lots", ok=False)
    assert wrong.returncode == 1 and "--bytes: got 'lots'; write a size as 16GB" in wrong.stderr


def test_fewer_bits_are_further_from_the_full_model(project):
    found = metrics(project)["runs"]
    half, g4, g2 = (found[f"mixed/half/mergemoe+tuned{end}"]["fidelity/kl"] for end in ("", "@g4", "@g2"))
    assert half < g2 and abs(g4 - half) < abs(g2 - half)
    assert 0 < found["mixed/whole/average@g4"]["fidelity/kl"] < half


def test_a_quantized_checkpoint_has_few_values_and_loads(project):
    tensors = load_file(project / "results/quantize/tiny/mixed/half/mergemoe+tuned/g2/layer_001.safetensors")
    groups = tensors["down"].double().unflatten(-1, (-1, 8))
    assert max(len(group.unique()) for group in groups.flatten(0, 2)) <= 4
    assert len(tensors["groups"]) == 4 and {part.dtype for part in (tensors["up"], tensors["gate"])} == {torch.float32}
    model = mergemoe.load(project / "results/models/tiny/mixed/half/mergemoe+tuned@g2", "cpu", torch.float32)
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj.data, tensors["down"])
    card = (project / "results/models/tiny/mixed/half/mergemoe+tuned@g2/README.md").read_text()
    assert "rounded to 2 bits by GPTQ, in groups of 8 (" in card and "`tiny/mixed/half/mergemoe+tuned@g2`" in card
    path = project / "results/models/tiny/mixed/half/mergemoe+tuned@d2"
    card = (path / "README.md").read_text()
    assert (
        "in groups of 8, and fitted to each layer's original output, all other matrices but routers to those of" in card
    )
    (embedding,) = {
        tuple(part.unflatten(-1, (-1, 32)).flatten(0, 1)[5].tolist())
        for file in path.glob("*.safetensors")
        for key, part in load_file(file).items()
        if key.endswith("embed_tokens.weight")
    }
    steps = torch.tensor(embedding) / max(map(abs, embedding)) * 127
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=0.1)  # Q8_0: a scale in 16 bits, 255 values


def test_a_record_has_both_errors(project):
    record = json.loads((project / "results/quantize/tiny/mixed/half/average/g4/layer_002.json").read_text())
    solved = json.loads((project / "results/solve/tiny/mixed/half/average/layer_002.json").read_text())
    assert record["start_error"] == pytest.approx(solved["output_error"], rel=1e-5)
    assert record["output_error"]["fit"] > record["start_error"]["fit"] and record["bits"] == 6.5


def test_changing_bits_reruns_the_quantization_and_what_is_below(project):
    path = project / "params.yaml"
    before = path.read_text()
    one = {"assemble": 1, "evaluate": 1, "fidelity": 1, "generate": 1, "report": 1}
    try:
        path.write_text(before.replace("bits: 2", "bits: 3", 1))
        assert planned(project) == {"quantize": 2, **one}
        path.write_text(before.replace("rest: Q8_0", "rest: Q4_0"))
        assert planned(project) == one  # its layers stay
    finally:
        path.write_text(before)


def test_a_layer_of_another_run_is_refused(project):
    folder = project / "results/quantize/tiny/mixed/half/mergemoe+tuned"
    own, other = (folder / name / "layer_001.safetensors" for name in ("g4", "g2"))
    kept = own.read_bytes()
    shutil.copyfile(other, own)
    try:
        done = snakemake(project, "--forcerun", "results/models/tiny/mixed/half/mergemoe+tuned@g4")
        assert done.returncode != 0 and "put in its place" in done.stdout + done.stderr
    finally:
        own.write_bytes(kept)


WHOLE_G4 = "tiny/mixed/whole/average@g4"


def test_a_packed_copy_takes_the_bytes_that_are_told(project, tmp_path):
    out = tmp_path / "out"
    run(project, "mergemoe", "export", WHOLE_G4, str(out), "--packed")
    packed, plain = (load_file(folder / "model.safetensors") for folder in (out, project / "results/models" / WHOLE_G4))
    shapes = {key: part for key, part in packed.items() if key.endswith(".weight_shape")}
    assert len(shapes) == 2 * 8 * 3 and all(part.nbytes == 16 for part in shapes.values())
    told = metrics(project)["runs"]["mixed/whole/average@g4"]["cost/bytes"]
    assert sum(part.nbytes for part in packed.values()) == told + 16 * len(shapes)
    assert sum(part.nbytes for part in plain.values()) > told + 2 * 8 * 3 * 24 * 32 * 2
    card = (out / "README.md").read_text()
    assert "They are stored in these bits" in card and "float32 numbers" not in card and "mergemoe.load" not in card
    assert "## Scores" in card and digests.sha256(out / "model.safetensors") in card
    assert not (out / "provenance.json").exists()  # it lists the files of the run's own checkpoint


@pytest.mark.parametrize(
    ("name", "said"),
    [("half/average", "this run is not quantized"), ("half/average@g4", "the checkpoint is compact")],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_written(project, tmp_path, name, said):
    refused = run(project, "mergemoe", "export", f"tiny/mixed/{name}", str(tmp_path / "new/out"), "--packed", ok=False)
    assert refused.returncode == 1 and f"error: tiny/mixed/{name}: " in refused.stderr and said in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop("up_scale"), "layer_002.safetensors has no grids: an older version made it"),
        (lambda tensors: tensors["up_zero"].add_(1), "was made from another results/quantize/tiny/mixed/whole"),
    ],
)
def test_a_layer_without_its_grids_is_not_packed(project, tmp_path, edit, said):
    path = project / "results/quantize/tiny/mixed/whole/average/g4/layer_002.safetensors"
    kept, tensors, made = path.read_bytes(), load_file(path), read_provenance(path)
    edit(tensors)
    store.write_tensors(path, tensors, {key: part for key, part in made.items() if key not in ("payload", "seal")})
    try:
        refused = run(project, "mergemoe", "export", WHOLE_G4, str(tmp_path / "out"), "--packed", ok=False)
        assert refused.returncode == 1 and said in refused.stderr and "--forcerun" in refused.stderr
        assert not (tmp_path / "out").exists()
    finally:
        path.write_bytes(kept)


def test_blocks_that_divide_no_row_are_refused_before_the_first_job(project):
    path = project / "params.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("bits: 2, by: gptq, group: 8", "by: round, format: Q8_0"))
        path.write_text(path.read_text().replace("bits: 2\n    by: gptq\n    group: 8", "by: round\n    format: Q8_0"))
        done = snakemake(project, "--dry-run")
        assert "rows of down of 24 numbers cannot be divided into blocks of 32" in done.stdout + done.stderr
    finally:
        path.write_text(before)
