"""The diffs in CONTRIBUTING.md apply to the project, and what they add runs."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
from tiny_project import ROOT, planned, snakemake


def diff_that_adds(file):
    """Return the diff in CONTRIBUTING.md that adds a file."""
    blocks = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if f"+++ b/{file}\n" in block]
    return found


def apply(diff, folder, *options):
    done = subprocess.run(["git", "apply", *options, "-"], cwd=folder, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def functions(text):
    return {node.name: ast.dump(node) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


@pytest.fixture
def project(finished, tmp_path):
    """A finished project of this test's own."""
    return shutil.copytree(finished, tmp_path / "project")


@pytest.mark.parametrize("file", ["mergemoe/methods/dominant.py", "stages/balance.py"])
def test_a_diff_applies(file):
    apply(diff_that_adds(file), ROOT, "--check")


def test_the_method_is_the_example_and_its_row_gives_the_table_of_the_documentation(tmp_path):
    shutil.copytree(ROOT / "mergemoe", tmp_path / "mergemoe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    apply(diff_that_adds("mergemoe/methods/dominant.py"), tmp_path)
    added = functions((tmp_path / "mergemoe" / "methods" / "dominant.py").read_text())
    assert added["merge"] == functions((ROOT / "examples" / "add_a_method.py").read_text())["merge"]
    code = "from mergemoe.methods import catalogue, options; print(options.markdown(catalogue.METHODS))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert printed.stdout.strip() in (tmp_path / "docs" / "method.md").read_text()
    assert "`dominant`" in printed.stdout


@pytest.mark.full
@pytest.mark.workflow
def test_the_method_runs_and_nothing_else_does(project):
    shutil.copytree(ROOT / "docs", project / "docs")
    apply(diff_that_adds("mergemoe/methods/dominant.py"), project)
    assert planned(project) == {}
    params = project / "params.yaml"
    added = params.read_text().replace("evaluate:\n", "  dominant: {method: dominant}\nevaluate:\n", 1)
    params.write_text(f"{added}  - [tiny, mixed, half, dominant]\n")
    one_run = {"solve": 2, "assemble": 1, "fidelity": 1, "generate": 1, "evaluate": 1, "report": 1}
    assert planned(project) == one_run
    record = "results/solve/tiny/mixed/half/dominant/layer_001.json"
    done = snakemake(project, record)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads((project / record).read_text())["output_error"]["heldout"] < 2


@pytest.mark.full
@pytest.mark.workflow
def test_the_stage_runs_and_only_the_report_reruns(project):
    apply(diff_that_adds("stages/balance.py"), project)
    assert planned(project) == {"balance": 2, "report": 1}
    done = snakemake(project)
    assert done.returncode == 0, done.stderr
    usage = json.loads((project / "results/profile/tiny/mixed/layer_001.json").read_text())["usage"]
    written = json.loads((project / "results/balance/tiny/mixed/layer_001.json").read_text())
    assert 1 < written["effective"] < len(usage)
    assert written["provenance"]["stage"] == "balance"
    assert planned(project) == {}
