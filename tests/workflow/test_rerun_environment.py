"""The environment of a rerun: what is installed, with which Python, and why it cannot be."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mergemoe import environment
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import audit, commands
from mergemoe.workflow.ledger.environments import recorded_environment, rerun_environment

PRESENT = environment.describe_environment()


@pytest.fixture
def tree(tmp_path):
    """A clone with a lock file, a constraint, and a record of this Python."""
    (tmp_path / "tree/envs").mkdir(parents=True)
    (tmp_path / "tree/envs/cpu.txt").write_text("dvc==0.1\n")
    (tmp_path / "tree/envs/cuda.txt").write_text("nvidia==1\n")
    recorded_with(tmp_path / "tree", PRESENT["python"])
    return tmp_path / "tree"


def recorded_with(tree, *pythons):
    stage = {"jobs": 1, "seconds": 1.0, "peak_mb": 1, "ran_in": [{**PRESENT, "python": python} for python in pythons]}
    (tree / recorded_environment.FILE).write_text(json.dumps({"stages": {"layout": stage}}))


@pytest.fixture
def called(monkeypatch):
    """The command lines, which are not run."""
    lines = []
    monkeypatch.setattr(commands, "run_program", lambda root, *command, **how: lines.append((root, *command)) or "{}")
    return lines


def test_the_revision_s_lock_file_is_installed_as_the_makefile_does(tree, called):
    python, place = rerun_environment.of_rerun(tree, locked=True)
    assert python == tree.parent / "environment/bin/python" and place["lock"] == "envs/cpu.txt"
    made, installed, described = called
    assert made == (tree, sys.executable, "-m", "venv", str(tree.parent / "environment"))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    assert installed == (tree, *pip, "--requirement", "envs/cpu.txt", "--constraint", "envs/cuda.txt")
    assert described[1:3] == (str(python), "-c")
    (tree / "envs/cuda.txt").unlink()
    rerun_environment.of_rerun(tree, locked=True)
    assert called[4] == (tree, *pip, "--requirement", "envs/cpu.txt")


def test_without_a_lock_file_nothing_is_installed(tree, called):
    python, place = rerun_environment.of_rerun(tree, locked=False)
    assert (python, place) == (commands.PYTHON, {"lock": None, **PRESENT}) and not called
    (tree / "envs/cpu.txt").unlink()
    with pytest.raises(UserError, match="the revision has no envs/cpu.txt, .* Leave out --environment"):
        rerun_environment.of_rerun(tree, locked=True)
    assert not called


def test_the_python_has_a_recorded_minor_version(tree, monkeypatch):
    recorded_with(tree, "3.97.1", PRESENT["python"].rpartition(".")[0] + ".99")
    assert rerun_environment.find_python(tree) == sys.executable
    recorded_with(tree, "3.97.1", "3.99.0")
    monkeypatch.setattr(rerun_environment.shutil, "which", {"python3.99": "/opt/python3.99"}.get)
    assert rerun_environment.find_python(tree) == "/opt/python3.99"
    monkeypatch.setattr(rerun_environment.shutil, "which", {}.get)
    says = r"recorded with Python 3.97.1, 3.99.0, and PATH has no python3.97 or python3.99. Install one of them"
    with pytest.raises(UserError, match=says):
        rerun_environment.find_python(tree)
    (tree / recorded_environment.FILE).unlink()  # as in a revision of before there was one
    assert rerun_environment.find_python(tree) == sys.executable


def test_an_environment_is_refused_without_a_rerun(tmp_path):
    for name in ("Snakefile", ".git", ".dvc"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="--environment installs the packages of a rerun. Add --rerun, or leave"):
        audit.audit_project(tmp_path, environment=True)


@pytest.mark.full
def test_packages_are_those_of_the_lock_file_and_a_failure_says_why(tree, tmp_path, monkeypatch):
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(zipfile.__file__).parent))
    with pytest.raises(UserError) as refused:
        rerun_environment.of_rerun(tree, locked=True)
    assert "No matching distribution found for dvc==0.1" in str(refused.value)
    assert "pip could not install envs/cpu.txt of the revision. It uses your settings" in str(refused.value)
    make_wheel(tmp_path, "dvc", "0.1")
    python, place = rerun_environment.of_rerun(tree, locked=True)
    assert place["packages"] == {"dvc": "0.1"} and place["python"] == PRESENT["python"]
    told = "import os, shutil; print(os.environ.get('PYTHONPATH'), shutil.which('python'))"
    said = commands.run_program(tree, str(python), "-c", told, python=python)
    assert said.split() == ["None", str(python)]
    differences = recorded_environment.environment_differences(tree, [place])
    assert differences == [f"dvc: {PRESENT['packages']['dvc']} when recorded, 0.1 here"]
    with pytest.raises(UserError, match="No module named snakemake"):
        commands.run_program(tree, "snakemake", python=python)
    subprocess.run([python, "-c", "import sys; assert sys.prefix != sys.base_prefix"], check=True)


def make_wheel(folder, name, version):
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
