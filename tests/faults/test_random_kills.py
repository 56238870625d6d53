"""A run that is killed at a random moment is complete, byte for byte, after the same command again."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import chance
import pytest
import warm
from tiny_project import everything, snakemake

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

FROM = ("calibrate", "profile", "cluster", "solve", "refine", "models", "scores")  # deleted from here on


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("killed") / "project")


def start(project):
    python = warm.python()
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}", "HOME": str(project)}
    command = [python, "-m", "snakemake", "--cores", "2"]
    with (project / "said.txt").open("w") as said:
        return subprocess.Popen(command, cwd=project, env=environment, stdout=said, stderr=said, start_new_session=True)


def processes(project, what):
    """The processes of a run: snakemake itself, its stages, or all."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and os.readlink(folder / "cwd") == str(project):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                kind = "stage" if "stages." in words and "snakemake" not in words else "snakemake"
                if what in ("all", kind):
                    found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def kill(project, draw, running):
    """Send a signal to some of a run's processes; return which, and what ends."""
    number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    what = draw.choice(["snakemake", "stage", "all"])
    time.sleep(draw.uniform(0.5, 8))
    for process in processes(project, what):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue
    if running.poll() is None:
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
    for process in processes(project, "all"):
        os.kill(process, signal.SIGKILL)
    return f"{signal.Signals(number).name} of {what}"


def finish(project):
    """Give the same command again, after --unlock if it asks for that; return its status, and what it took."""
    done, took = snakemake(project), "one command"
    if "--unlock" in done.stdout + done.stderr:
        assert snakemake(project, "--unlock").returncode == 0
        done, took = snakemake(project), "unlocked"
    return done, took


def test_what_was_killed_ends_in_the_same_bytes(finished, project):
    expected, counts, wrong = everything(project), Counter(), []
    for draw in chance.rounds("random kills", least=2):
        first = draw.randrange(len(FROM))
        for name in (*FROM[first:], "report"):
            shutil.rmtree(project / "results" / name, ignore_errors=True)
        what = kill(project, draw, start(project))
        done, took = finish(project)
        found = everything(project)
        left = [*(project / "results").glob(".tmp/*"), *(project / "results").glob(".finished")]
        if done.returncode or found != expected or left:
            other = [path for path in found | expected if found.get(path) != expected.get(path)]
            wrong.append((FROM[first], what, done.returncode, other, left, (done.stdout + done.stderr)[-2000:]))
            shutil.rmtree(project)
            shutil.copytree(finished, project)
        counts[f"{what}, {took}"] += 1
        if sum(counts.values()) % 20 == 0:
            chance.tell("random kills", counts)
    chance.tell("random kills", counts)
    assert not wrong, "\n".join(map(str, wrong))
