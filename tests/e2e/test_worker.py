"""MERGEMOE_WORKER=1: the jobs of a run are forks of one process; test_workflow.py compares the bytes of both kinds."""

import sys

import pytest
from tiny_project import copy_project, snakemake

PROFILE = "results/profile/tiny/mixed/layer_001.json"


@pytest.mark.parametrize("asked", ["1", "0"])
def test_a_run_uses_a_worker_if_it_is_asked_for(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("MERGEMOE_WORKER", asked)
    project = copy_project(tmp_path)
    stage = project / "stages" / "profile.py"
    told = "import argparse\nimport sys\nprint('imported:', 'torch' in sys.modules, file=sys.stderr)\n"
    stage.write_text(stage.read_text(encoding="utf-8").replace("import argparse\n", told, 1), encoding="utf-8")
    done = snakemake(project, PROFILE, python=sys.executable)
    assert done.returncode == 0, done.stderr
    logs = [path.read_text(encoding="utf-8") for path in (project / "logs" / "profile").rglob("*.log")]
    assert len(logs) == 1
    assert f"imported: {asked == '1'}" in logs[0]
