"""The real Snakefile on tests/tiny/params.yaml: whole, repeatable, and clear where it cannot run."""

import json
import shutil
import sys

import pytest
import yaml
from tiny_project import copy_project, snakemake

from mergemoe.artifacts.digests import sha256

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]


def digests(project):
    files = (path for path in (project / "results").rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(project)): sha256(path) for path in files}


def test_every_artifact_is_there_and_nothing_else(finished):
    results = finished / "results"
    assert json.loads((results / "metrics.json").read_text())["tiny"]["runs"].keys() == {
        "mixed/half/average",
        "mixed/half/mergemoe",
        "mixed/half/mergemoe+tuned",
    }
    for path in [
        "layout/tiny.json",
        "calibrate/tiny/mixed/tokens.safetensors",
        "calibrate/tiny/mixed/tokens.json",
        "capture/tiny/mixed/layer_001.h5",
        "profile/tiny/mixed/layer_002.json",
        "cluster/tiny/mixed/half/layer_001.json",
        "solve/tiny/mixed/half/mergemoe/layer_002.safetensors",
        "refine/tiny/mixed/half/mergemoe/tuned/layer_002.safetensors",
        "refine/tiny/mixed/half/mergemoe/tuned/layer_002.json",
        "models/tiny/mixed/half/average/config.json",
        "models/tiny/mixed/half/mergemoe+tuned/config.json",
        "scores/tiny/full/blimp.json",
        "scores/tiny/mixed/half/mergemoe/fidelity.json",
        "scores/tiny/full/generation.json",
        "scores/tiny/mixed/half/mergemoe+tuned/blimp.json",
        "cards/tiny/mixed/half/mergemoe.md",
        "cards/tiny/mixed/half/mergemoe+tuned.md",
        "report/index.html",
    ]:
        assert (results / path).is_file(), path
    assert not (results / ".tmp").exists() and not (results / ".finished").exists()
    assert not list((finished / "scratch").rglob("*.*"))


def test_a_second_run_has_nothing_to_do(finished):
    again = snakemake(finished)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.fixture(scope="module")
def again(finished, tmp_path_factory):
    """The project, all made anew on one core: one run with its scores by fresh interpreters, the rest by forks."""
    project = shutil.copytree(finished, tmp_path_factory.mktemp("again") / "project")
    for folder in ("results", ".snakemake", "logs", "scratch"):
        shutil.rmtree(project / folder)
    tasks = ("blimp", "fidelity", "generation")
    scores = [f"results/scores/tiny/mixed/half/mergemoe+tuned/{task}.json" for task in tasks]
    fresh = snakemake(project, *scores, cores=1, python=sys.executable)
    assert fresh.returncode == 0, fresh.stderr
    return project


@pytest.mark.full
def test_every_solve_reports_its_cpu_time(again):
    for log in (again / "logs" / "solve").rglob("*.log"):
        assert "CPU time: " in log.read_text()
    benchmarks = list((again / "logs" / "bench" / "solve").rglob("*.jsonl"))
    assert len(benchmarks) == 2
    assert len(list((again / "logs" / "bench" / "refine").rglob("*.jsonl"))) == 2
    assert all(json.loads(path.read_text().splitlines()[0])["cpu_time"] > 0 for path in benchmarks)


@pytest.mark.full
def test_results_deleted_and_made_again_are_the_same_bytes_also_with_other_cores(finished, again):
    rest = snakemake(again, cores=1)
    assert rest.returncode == 0, rest.stderr
    assert digests(again) == digests(finished)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("solve.mergemoe.rigde", 0.1, "solve.mergemoe.rigde: unknown key"),
        *(
            pytest.param(*mistake, marks=pytest.mark.full)
            for mistake in [
                (
                    "calibrate.mixed.source",
                    "data/none.jsonl",
                    "calibrate.mixed.source: data/none.jsonl: there is no such file",
                ),
                ("calibrate.mixed.samples", 1000000, "asks for 1000000"),
                ("cluster.half.experts", 9, "asks for more experts than the layer has (8)"),
                ("model.tiny.path", "nowhere", "nowhere: there is no config.json"),
            ]
        ),
    ],
)
def test_a_mistake_stops_the_run_before_the_first_job_in_clear_words(tmp_path, path, value, message):
    project = copy_project(tmp_path)
    params = yaml.safe_load((project / "params.yaml").read_text())
    section, name, key = path.split(".")
    params[section][name][key] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    failed = snakemake(project)
    assert failed.returncode != 0
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (project / "results").exists() or not list((project / "results").rglob("*.json"))
