"""MERGEMOE_WORKER=1: the jobs of a run are forks of one process; test_workflow.py compares the bytes of both kinds."""

import sys

import pytest
from tiny_project import copy_project, snakemake

PROFILE = "results/profile/tiny/mixed/layer_001.json"
ON_A_NODE = ["--mode", "remote", "--target-jobs", "profile:model=tiny,calibrate=mixed,layer=001"]
ON_A_NODE += ["--nolock", "--no-hooks"]


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A project whose profile tells in its log whether torch had been imported before it began."""
    project = copy_project(tmp_path_factory.mktemp("captured"))
    stage = project / "stages" / "profile.py"
    told = "import argparse\nimport sys\nprint('imported:', 'torch' in sys.modules, file=sys.stderr)\n"
    stage.write_text(stage.read_text(encoding="utf-8").replace("import argparse\n", told, 1), encoding="utf-8")
    done = snakemake(project, "--until", "capture")
    assert done.returncode == 0, done.stderr
    return project


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        pytest.param("1", [PROFILE], id="local"),
        pytest.param("0", [PROFILE], id="local, not asked for", marks=pytest.mark.full),
        pytest.param("1", ON_A_NODE, id="on a node", marks=pytest.mark.full),
        pytest.param("0", ON_A_NODE, id="on a node, not asked for", marks=pytest.mark.full),
    ],
)
def test_a_run_uses_a_worker_if_it_is_asked_for(captured, monkeypatch, asked, command):
    monkeypatch.setenv("MERGEMOE_WORKER", asked)
    (captured / PROFILE).unlink(missing_ok=True)
    done = snakemake(captured, *command, "--forcerun", "profile", python=sys.executable)
    assert done.returncode == 0, done.stderr
    (log,) = (path.read_text(encoding="utf-8") for path in (captured / "logs" / "profile").rglob("*.log"))
    assert f"imported: {asked == '1'}" in log


@pytest.mark.full
def test_a_dry_run_starts_no_worker(captured, monkeypatch, tmp_path):
    monkeypatch.setenv("MERGEMOE_WORKER", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = snakemake(captured, "--dry-run", "--forcerun", "profile", python=sys.executable)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("mergemoe_worker_*"))
