"""Two commands at once, at random moments: each is right or says why not, and the next run is complete."""

import re
import shutil
import subprocess
import time
from collections import Counter

import chance
import pytest
from project import environment, run
from tiny_project import everything

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

FROM = ("calibrate", "capture", "profile", "cluster", "solve", "refine", "models", "scores")  # deleted from here on
SNAKEMAKE = ("python", "-m", "snakemake", "--cores", "1")
OTHERS = {
    "snakemake": SNAKEMAKE,
    "snakemake --nolock": (*SNAKEMAKE, "--nolock"),
    "snakemake --unlock": (*SNAKEMAKE, "--unlock"),
    "snakemake -n": (*SNAKEMAKE, "-n"),
    "record": ("python", "-m", "mergemoe.cli", "record"),
    "restore": ("python", "-m", "mergemoe.cli", "restore", "HEAD"),
    "audit": ("python", "-m", "mergemoe.cli", "audit"),
}
CLEAR = re.compile(r"^(?:error: |.*Error in rule |LockException|WorkflowError)", re.MULTILINE)
UNLOCKED = re.compile(r"FileNotFoundError: .*/\.snakemake/locks/")  # Snakemake's own, if its new lock is taken away


@pytest.fixture(scope="module")
def project(recorded, tmp_path_factory):
    return shutil.copytree(recorded, tmp_path_factory.mktemp("two") / "project")


def start(project, command):
    said = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=project, env=environment(project), stdout=said, stderr=subprocess.STDOUT, text=True
    )


def test_two_commands_at_once_do_no_harm(project):
    expected, lock, counts = everything(project), (project / "dvc.lock").read_bytes(), Counter()
    others = list(OTHERS)
    for draw in chance.rounds("two runs", least=2):
        for name in FROM[draw.randrange(len(FROM)) :]:
            shutil.rmtree(project / "results" / name, ignore_errors=True)
        shutil.rmtree(project / "results/report", ignore_errors=True)
        name = others.pop(draw.randrange(len(others)))
        others = others or list(OTHERS)
        running = [start(project, SNAKEMAKE)]
        time.sleep(draw.uniform(0, 8))
        running.append(start(project, OTHERS[name]))
        for what, one in zip(("snakemake", name), running, strict=True):
            said = one.communicate()[0]
            fine = one.returncode == 0 or CLEAR.search(said) and "Traceback" not in said
            fine = fine or name == "snakemake --unlock" and UNLOCKED.search(said)
            assert fine or what == "audit" and re.search("verdict: (equivalent|different)", said), (
                name,
                what,
                one.returncode,
                said[-4000:],
            )
            counts[f"{what} beside {name if what == 'snakemake' else 'snakemake'}: rc {one.returncode}"] += 1
        done = run(project, "snakemake", ok=False)
        assert done.returncode == 0, (name, (done.stdout + done.stderr)[-4000:])
        found = everything(project)
        assert found == expected, (name, [path for path in found | expected if found.get(path) != expected.get(path)])
        assert (project / "dvc.lock").read_bytes() == lock, name
        run(project, "git", "diff", "--quiet")
    chance.tell("two runs", counts)
