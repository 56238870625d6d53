"""Budgets in the real Snakefile: what they spend adds up, the checkpoints load, and a change reruns what lies below."""

import json
import shutil

import pytest
import torch
import yaml
from tiny_project import planned, snakemake
from transformers import AutoModelForCausalLM

import mergemoe

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(600)]

CLUSTERS = {
    "own": {"by": "selection", "share": 0.5, "per": "layer"},
    "used": {"by": "weights", "experts": 0.5, "budget": "usage"},
    "measured": {"by": "weights", "experts": 0.5, "budget": "error"},
}
MODEL = "results/models/tiny/mixed/own/picked"
# Loading another checkpoint would say nothing more.
TARGETS = [
    MODEL,
    *(f"results/cluster/tiny/mixed/{cluster}/layer_00{layer}.json" for cluster in CLUSTERS for layer in (1, 2)),
]
RUNS = [
    ["tiny", "mixed", "own", "picked"],
    ["tiny", "mixed", "used", "average"],
    ["tiny", "mixed", "measured", "mergemoe"],
]


@pytest.fixture(scope="module")
def spent(finished, tmp_path_factory):
    project = shutil.copytree(finished, tmp_path_factory.mktemp("budget") / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["cluster"] |= CLUSTERS
    params["solve"]["picked"] = {"method": "select", "width": "auto"}
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "runs": RUNS}))
    done = snakemake(project, *TARGETS)
    assert done.returncode == 0, done.stderr
    return project


def sizes(project, cluster):
    layers = [json.loads(path.read_text()) for path in sorted(project.glob(f"results/cluster/tiny/mixed/{cluster}/*"))]
    return [(layer["kept"], layer["width"]) for layer in layers]


def test_what_is_spent_adds_up(spent):
    for cluster in ("used", "measured"):
        assert sum(kept for kept, _ in sizes(spent, cluster)) == 8
        chosen = json.loads((spent / f"results/budget/tiny/mixed/{cluster}.json").read_text())["layers"]
        assert [(one["experts"], one["width"]) for one in chosen.values()] == sizes(spent, cluster)
    for kept, width in sizes(spent, "own"):
        assert kept * width <= 8 * 24 // 2 < kept * (width + 8)


def test_a_share_takes_the_size_of_the_least_measured_error(spent):
    for path, chosen in zip(sorted(spent.glob("results/curve/tiny/mixed/own/*")), sizes(spent, "own"), strict=True):
        measured = json.loads(path.read_text())["sizes"]
        best = min(measured, key=lambda size: size["error"])
        assert (best["experts"], best["width"]) == chosen and len(measured) == 5


def test_a_checkpoint_of_the_sizes_that_a_share_takes_loads_both_ways(spent, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    folder, ids = spent / MODEL, torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = mergemoe.load(folder, "cpu")(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")(ids).logits
    assert torch.equal(ours, theirs) and ours.isfinite().all()


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        ("runs:", "# a remark\nruns:", {}),
        ("share: 0.5", "share: 0.6", {"curve": 2, "budget": 1, "cluster": 2, "solve": 2, "assemble": 1}),
        ("per: layer", "per: model", {"budget": 1, "cluster": 2, "solve": 2, "assemble": 1}),
        ("budget: error", "budget: usage", {"budget": 1, "cluster": 2}),
    ],
)
def test_a_change_reruns_what_lies_below(spent, old, new, jobs):
    text = (spent / "params.yaml").read_text()
    assert old in text
    try:
        (spent / "params.yaml").write_text(text.replace(old, new))
        assert planned(spent, *TARGETS) == jobs
    finally:
        (spent / "params.yaml").write_text(text)
