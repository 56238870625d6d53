"""What recorded jobs ran in: gathered from the logs, held against this machine."""

import json
import os
import re
import subprocess
import sys

import pytest
from tiny_project import ROOT

from mergemoe import environment
from mergemoe.artifacts.stages import STAGES
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.config.params_file import read_file
from mergemoe.workflow.ledger.environments import recorded_environment
from mergemoe.workflow.planning import jobs

CLAIMS = {
    "results/layout/m.json": {"stage": "layout"},
    "results/solve/m/c/half/a/layer_001.safetensors": {"stage": "solve"},
    "results/solve/m/c/half/a/layer_002.safetensors": {"stage": "solve"},
    "results/capture/m/c": {"stage": "capture"},
    "results/report/provenance.json": {"stage": "report"},
}


def log(root, path, **facts):
    file = root / "logs" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    ran = {**environment.describe_environment(), "threads": 1, "seconds": 2.5, "peak_mb": 300} | facts
    ran = {"node": path, "devices": None} | ran
    file.write_text(f"a line\n{environment.MARK}{json.dumps(ran)}\nCPU time: 1.0 s\n")


def test_jobs_of_a_stage_are_counted_with_their_seconds_and_every_place_once(tmp_path):
    log(tmp_path, "layout/m.log")
    log(tmp_path, "solve/m/c/half/a/layer_001.log")
    log(tmp_path, "solve/m/c/half/a/layer_002.log", seconds=1.25, peak_mb=500)
    log(tmp_path, "report.log", python="3.99.0")
    (tmp_path / "logs/capture/m").mkdir(parents=True)
    (tmp_path / "logs/capture/m/c.log").write_text("killed\n")
    recorded_environment.renew_recorded(tmp_path, CLAIMS)
    stages = recorded_environment.read_recorded(tmp_path)
    assert {name: (one["jobs"], one["seconds"], one["peak_mb"]) for name, one in stages.items()} == {
        "layout": (1, 2.5, 300),
        "solve": (2, 3.8, 500),
        "report": (1, 2.5, 300),
    }
    assert all(len(one["ran_in"]) == 1 for one in stages.values())
    present = environment.describe_environment()["python"]
    here = [environment.describe_environment()]
    assert recorded_environment.environment_differences(tmp_path, here) == [
        f"python: {present} and 3.99.0 when recorded, {present} here"
    ]


def test_the_environments_here_are_those_of_the_logs_that_are_here(tmp_path):
    log(tmp_path, "layout/m.log", mkl_cbwr="COMPATIBLE", gpu=None)
    recorded_environment.renew_recorded(tmp_path, CLAIMS)
    assert recorded_environment.environments({}) == [environment.describe_environment()]
    log(tmp_path, "layout/m.log", mkl_cbwr="AVX2", gpu="another", processor="another")
    here = recorded_environment.environments(recorded_environment.gather_logs(tmp_path, CLAIMS))
    assert recorded_environment.environment_differences(tmp_path, here) == [
        f"processor: {environment.describe_environment()['processor']} when recorded, another here",
        "gpu: None when recorded, another here",
        "mkl_cbwr: COMPATIBLE when recorded, AVX2 here",
    ]
    assert recorded_environment.environment_differences(tmp_path / "unrecorded", here) == []


def test_a_stage_without_logs_keeps_what_was_said_of_it(tmp_path):
    log(tmp_path, "capture/m/c.log", processor="another")
    recorded_environment.renew_recorded(tmp_path, CLAIMS)
    (tmp_path / "logs/capture/m/c.log").unlink()
    log(tmp_path, "report.log")
    recorded_environment.renew_recorded(tmp_path, CLAIMS)
    assert recorded_environment.read_recorded(tmp_path)["capture"]["ran_in"][0]["processor"] == "another"
    assert recorded_environment.read_recorded(tmp_path)["report"]["jobs"] == 1


def test_logs_and_stages_of_choices_that_were_removed_do_not_count(tmp_path):
    for path in ("layout/m", "solve/m/c/half/a/layer_001", "solve/m/c/half/removed/layer_001", "refine/removed"):
        log(tmp_path, f"{path}.log")
    for path in ("solve/m/c/half/a/layer_001", "refine/m/c/half/a/long/layer_001"):
        log(tmp_path, f"{path}.log", processor="another")
    refined = {"results/refine/m/c/half/a/long/layer_001.safetensors": {"stage": "refine"}}
    recorded_environment.renew_recorded(tmp_path, CLAIMS | refined)
    assert recorded_environment.read_recorded(tmp_path)["refine"]["jobs"] == 1
    recorded_environment.renew_recorded(tmp_path, CLAIMS)
    stages = recorded_environment.read_recorded(tmp_path)
    assert {name: one["jobs"] for name, one in stages.items()} == {"layout": 1, "solve": 1}


@pytest.mark.parametrize("params", ["params.yaml", "tests/tiny/params.yaml"])
def test_the_log_of_every_job_follows_from_its_output(params, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = read_file(params)
    if params != "params.yaml":
        read["model"]["tiny"]["path"] = str(tiny)
    for name, wildcards in jobs.every_job(read_params(read)):
        stage = STAGES[name]
        found = recorded_environment._log(stage.output.format(**wildcards), name)
        assert found == stage.log.format(**wildcards)


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="only Linux says it there")
def test_a_job_says_versions_threads_and_seconds():
    program = "import time; now = 10.0; time.monotonic = lambda: now; import stages\n"
    program += "now = 12.54; import torch; torch.set_num_threads(1); held = torch.zeros(50_000_000); del held\n"
    program += "from mergemoe import environment; print(environment.environment_line())"
    on_a_node = {**os.environ, "SLURMD_NODENAME": "gn1", "CUDA_VISIBLE_DEVICES": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=on_a_node, capture_output=True, text=True, check=True)
    ran = json.loads(re.search(rf"{environment.MARK}(.*)", done.stdout)[1])
    assert ran["packages"]["torch"] and ran["packages"]["numpy"] == __import__("numpy").__version__
    assert (ran["threads"], ran["gpu"], ran["mkl_cbwr"]) == (1, ran["gpu"], "AVX2")
    assert ran["seconds"] == 2.5  # by a clock that nobody sets, from before torch was imported
    assert (ran["node"], ran["devices"]) == ("gn1", "1")
    assert 300 < ran["peak_mb"] < 1000  # torch takes some 250 MB, what was held 200
    assert re.search(r", family \d+, model \d+$", ran["processor"])
