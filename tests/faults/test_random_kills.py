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

FROM = (
    "layout",
    "calibrate",
    "capture",
    "profile",
    "cluster",
    "solve",
    "refine",
    "models",
    "scores",
)  # deleted from here on


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


def send(project, number, what):
    """Send a signal to processes of a run; return how many it reached."""
    reached = 0
    for process in processes(project, what):
        try:
            os.kill(process, number)
            reached += 1
        except ProcessLookupError:
            continue
    return reached


def kill(project, draw):
    """Start a run and send a signal to some of its processes; return which, or that the run had ended before."""
    running = start(project)
    number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    what = draw.choice(["snakemake", "stage", "all"])
    time.sleep(draw.uniform(0.5, 8))
    while not (reached := send(project, number, what)) and running.poll() is None:
        time.sleep(0.01)  # between two stages
    try:
        running.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    send(project, signal.SIGKILL, "all")
    return f"{signal.Signals(number).name} of {what}" if reached else "too late"


def unlock(project):
    """Do what the message of a locked folder says, if there is a lock."""
    if any((project / ".snakemake/locks").glob("*")):
        assert snakemake(project, "--unlock").returncode == 0


def test_what_was_killed_once_or_again_and_again_ends_in_the_same_bytes(finished, project):
    expected, counts, wrong = everything(project), Counter(), []
    for draw in chance.rounds("random kills", least=2):
        first, kills = draw.randrange(len(FROM)), []
        for name in (*FROM[first:], "report"):
            shutil.rmtree(project / "results" / name, ignore_errors=True)
        for _ in range(draw.randint(1, 8)):
            kills.append(kill(project, draw))
            unlock(project)
            if kills[-1] == "too late":  # all is made, and nothing is left to kill
                break
        done, found = snakemake(project), everything(project)
        left = [*(project / "results").glob(".tmp/*"), *(project / "results").glob(".finished")]
        if done.returncode or found != expected or left:
            other = [path for path in found | expected if found.get(path) != expected.get(path)]
            wrong.append((FROM[first], kills, done.returncode, other, left, (done.stdout + done.stderr)[-2000:]))
            shutil.rmtree(project)
            shutil.copytree(finished, project)
        counts.update(kills)
        if draw.random() < 0.1:
            chance.tell("random kills", counts)
    chance.tell("random kills", counts)
    assert not wrong, "\n".join(map(str, wrong))
    assert counts["too late"] <= sum(counts.values()) / 2 or sum(counts.values()) < 40
