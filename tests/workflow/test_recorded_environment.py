"""What recorded jobs ran in: gathered from the logs, held against this machine."""

import json
import os
import re
import subprocess
import sys

import pytest
from tiny_project import ROOT

from mergemoe import environment
from mergemoe.workflow.ledger import recorded_environment


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
    (tmp_path / "logs/solve/killed.log").write_text("x\n")
    recorded_environment.renew_recorded(tmp_path)
    stages = recorded_environment.read_recorded(tmp_path)
    assert {name: (one["jobs"], one["seconds"], one["peak_mb"]) for name, one in stages.items()} == {
        "layout": (1, 2.5, 300),
        "solve": (2, 3.8, 500),
        "report": (1, 2.5, 300),
    }
    assert all(len(one["ran_in"]) == 1 for one in stages.values())
    assert recorded_environment.environment_differences(tmp_path) == [
        f"python: 3.99.0 when recorded, {environment.describe_environment()['python']} here"
    ]


def test_a_stage_without_logs_keeps_what_was_said_of_it(tmp_path):
    log(tmp_path, "capture/m/c.log", processor="another")
    recorded_environment.renew_recorded(tmp_path)
    (tmp_path / "logs/capture/m/c.log").unlink()
    log(tmp_path, "report.log")
    recorded_environment.renew_recorded(tmp_path)
    assert recorded_environment.read_recorded(tmp_path)["capture"]["ran_in"][0]["processor"] == "another"
    assert recorded_environment.read_recorded(tmp_path)["report"]["jobs"] == 1


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
