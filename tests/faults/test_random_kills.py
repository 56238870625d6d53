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


def test_what_was_killed_ends_in_the_same_bytes(project):
    expected, counts = everything(project), Counter()
    for draw in chance.rounds("random kills", least=2):
        first = draw.randrange(len(FROM))
        for name in FROM[first:]:
            shutil.rmtree(project / "results" / name, ignore_errors=True)
        shutil.rmtree(project / "results/report", ignore_errors=True)
        number, what = (
            draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]),
            draw.choice(["snakemake", "stage", "all"]),
        )
        running = start(project)
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
        done = snakemake(project)
        if "--unlock" in done.stdout + done.stderr:
            assert snakemake(project, "--unlock").returncode == 0
            done, what = snakemake(project), f"{what}, unlocked"
        said = done.stdout + done.stderr
        assert done.returncode == 0, (number, what, said[-3000:])
        found = everything(project)
        assert found == expected, [path for path in found | expected if found.get(path) != expected.get(path)]
        counts[f"{signal.Signals(number).name} of {what}"] += 1
    chance.tell("random kills", counts)
    assert not list((project / "results").glob(".tmp/*")) and not (project / "results/.finished").exists()
