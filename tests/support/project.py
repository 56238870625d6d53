"""A finished tiny project under git and DVC, and the commands of its ledger."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import warm
from tiny_project import ROOT

FILES = (".gitignore", ".dvcignore", "dvc.yaml")


def environment(project: Path) -> dict[str, str]:
    """The environment of the commands: a committer, DVC states of the project's own, warm processes."""
    names = {f"GIT_{role}_{what}": "tests" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(warm.python()).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    states = str(project.parent / "dvc-state")
    return {**os.environ, **names, "PATH": path, "DVC_SITE_CACHE_DIR": states, "HOME": str(project.parent)}


def run(project: Path, *command: str, ok: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; `mergemoe`, `snakemake` and stages are forks of a warm process."""
    if command[0] == "mergemoe":
        command = ("python", "-m", "mergemoe.cli", *command[1:])
    elif command[0] == "dvc":
        command = ("python", "-m", *command)
    elif command[0] == "snakemake":
        command = ("python", "-m", "snakemake", "--cores", "2", *command[1:])
    env = environment(project) | variables
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def put_under_git(finished: Path, project: Path) -> Path:
    """Copy a finished project, recorded by nobody yet, and put it under git and DVC."""
    shutil.copytree(finished, project)
    for name in FILES:
        shutil.copyfile(ROOT / name, project / name)
    run(project, "git", "init", "--quiet", "--initial-branch", "main")
    run(project, "dvc", "init", "--quiet")
    run(project, "dvc", "config", "core.analytics", "false")
    shutil.copyfile(ROOT / ".dvcignore", project / ".dvcignore")
    return project


def commit(project: Path, message: str) -> str:
    """Commit everything; return the commit."""
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", message)
    return run(project, "git", "rev-parse", "HEAD").stdout.strip()


def change(project: Path, old: str, new: str, file: str = "params.yaml") -> None:
    """Put another text into a file of the project."""
    before = (project / file).read_text()
    assert old in before
    (project / file).write_text(before.replace(old, new, 1))
