"""dvc.yaml against the Snakefile and the code: the ledger and the engine never drift."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, snakemake

from mergemoe.params import read_params
from stages import tracking
from stages.graph import Graph

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RULES = re.findall(r"^rule (\w+):", (ROOT / "Snakefile").read_text(), re.MULTILINE)


def params_of(tiny):
    """The project's parameters on the tiny model."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return read_params({**params, "model": {"tiny": {"path": str(tiny)}}, "runs": "all"})


def rules_of(stage):
    """The rules that a stage's command allows."""
    return re.search(r"--allowed-rules (.+) stage_(\w+) -- stage_\2$", STAGES[stage]["cmd"])[1].split()


def test_every_rule_belongs_to_one_stage_in_the_snakefiles_order(tiny):
    kept = [rule for rule in RULES if rule not in {"all", "report_partial"}]
    assert [rule for stage in STAGES for rule in rules_of(stage)] == kept
    assert list(STAGES) == list(Graph(params_of(tiny)).targets())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_its_rules_run(stage):
    modules = [f"stages.{rule}" for rule in rules_of(stage)]
    code = {str(path.relative_to(ROOT)) for path in tracking.sources(*modules)}
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py") or dep == "mergemoe/methods"}
    by_name = {"mergemoe/methods"} if stage == "solve" else set()  # methods are loaded by name
    assert listed == {path for path in code if not path.startswith("mergemoe/methods")} | by_name


@pytest.mark.workflow
@pytest.mark.timeout(900)
def test_after_a_commit_dvc_has_nothing_to_do(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    text = (ROOT / "dvc.yaml").read_text().replace("data/demo-moe", "tiny-moe")
    (project / "dvc.yaml").write_text(text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}

    def run(*command):
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)

    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    committed = run(sys.executable, "-m", "dvc", "commit", "-f")
    assert committed.returncode == 0, committed.stderr
    assert "up to date" in run(sys.executable, "-m", "dvc", "status").stdout
    metrics = run(sys.executable, "-m", "dvc", "metrics", "show", "--json")
    assert '"fidelity/kl"' in metrics.stdout
    plots = run(sys.executable, "-m", "dvc", "plots", "show", "--json", "--split")
    assert plots.returncode == 0, plots.stderr
    points = json.loads(plots.stdout)["data"]["KL to the full model over size"][0]
    assert "mixed/half/mergemoe" in json.dumps(points)
    again = run(sys.executable, "-m", "dvc", "repro")
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout
    assert "Nothing to be done" in snakemake(project).stderr
