"""The workflow on a real SLURM: the same bytes as on one machine, whatever befalls its jobs at night."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from slurmcluster import FILL_DISK, HOLD, TAKE_MEMORY, Cluster, Project, wait
from tiny_project import ROOT, snakemake

from mergemoe import environment
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import jobs, slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

MODEL = "results/models/tiny/mixed/half/mergemoe"
SOLVED = "results/solve/tiny/mixed/half/mergemoe"
ON_GPUS = {"capture", "reference", "solve", "refine", "fidelity", "generate", "evaluate"}


@pytest.fixture(scope="module")
def cluster():
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    cluster = Cluster(port=17800 + 50 * int(worker.removeprefix("gw")))
    yield cluster
    cluster.stop()


def files(folder):
    """The files of a folder and what they hold, without Snakemake's marks and temporaries."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "/." not in str(path)}


def test_the_demo_gives_the_same_bytes_on_the_gpus_of_both_nodes(cluster, tmp_path):
    local = tmp_path / "local"
    for name in ("mergemoe", "stages", "profiles", "data", "envs"):
        shutil.copytree(ROOT / name, local / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", local / "Snakefile")
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"runs": [["demo", "mixed", "half", "mergemoe"]]}
    (local / "params.yaml").write_text(yaml.safe_dump(params))
    project = Project(cluster, shutil.copytree(local, tmp_path / "cluster"))
    with cluster.watched() as peaks:
        assert project.run() == 0, project.said()
    done = snakemake(local)
    assert done.returncode == 0, done.stderr
    assert files(project.folder / "results") == files(local / "results")

    used: dict[str, set[str]] = {}
    for log in (project.folder / "logs").rglob("*.log"):
        for line in re.findall(rf"^{environment.MARK}(.*)$", log.read_text(), re.MULTILINE):
            stage, ran = log.relative_to(project.folder / "logs").with_suffix("").parts[0], json.loads(line)
            assert (ran["devices"] in {"0", "1"}) == (stage in ON_GPUS), (stage, ran)
            used.setdefault("GPU" if stage in ON_GPUS else "CPU", set()).add(ran["node"])
    assert used == {"GPU": {"gn1", "gn2"}, "CPU": {"cn1"}}

    check_memory(cluster, read_params(params), peaks)


def test_memory_is_asked_for_as_it_is_taken_at_the_width_of_qwen15_moe(cluster, tmp_path, monkeypatch):
    folder = tmp_path / "wide"
    subprocess.run([sys.executable, "benchmarks/needs.py", "--make", folder], cwd=ROOT, check=True)
    (folder / "profiles").unlink()  # a link to ours, which must stay as it is
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params |= {"cluster": {"most": {"by": "weights", "experts": 52}}, "runs": [["qwen", "mixed", "most", "mergemoe"]]}
    for text in (params["calibrate"]["mixed"], params["evaluate"]["heldout"]):
        text |= {"samples": 8, "length": 128}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    project = Project(cluster, folder)
    with cluster.watched() as peaks:
        assert project.run("--jobs", "2") == 0, project.said()  # the machine has no more memory
    monkeypatch.chdir(folder)
    check_memory(cluster, read_params(params), peaks)


def check_memory(cluster, params, peaks):
    """Every stage ran, and asked for once to twice of what its largest job took, Snakemake in it included."""
    asked, taken = Counter(), Counter()
    for stage, names in jobs.every_job(params):
        asked[stage] = max(asked[stage], slurm.job_request(params, stage, names).mem_mb)
    kinds = dict(line.split() for line in cluster.ask("squeue", "-h", "-t", "all", "-o", "%i %k").splitlines())
    for job, peak in peaks.items():
        stage = kinds[job].split("_")[1].removesuffix("s")  # of rule_solve_wildcards_..., rule_solves_solve
        taken[stage] = max(taken[stage], peak)
    assert taken.keys() == asked.keys()
    print({stage: f"{asked[stage]} MB / {taken[stage]:.0f} MB = {asked[stage] / taken[stage]:.2f}" for stage in asked})
    assert all(1 <= asked[stage] / taken[stage] <= 2 for stage in asked)


@pytest.fixture
def project(cluster, finished, tmp_path):
    """A finished project of two layers and one run, without its solved layers and what follows."""
    folder = shutil.copytree(finished, tmp_path / "project")
    for path in (SOLVED, MODEL):
        shutil.rmtree(folder / path)
    cluster.start()
    return Project(cluster, folder)


def halfway(project, fault):
    """Start a run; let something befall its second layer, once the first is solved; return run, process and layer."""
    run = project.start(MODEL)
    solved = project.folder / SOLVED
    first = wait(lambda: list(solved.glob("*.json")), "solved layer", project.said)[0].with_suffix(".safetensors")
    project.fault("solve", fault)
    return run, project.struck("solve"), first


def node_down(project, held):
    _, node = project.job()
    project.cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")


def slurmd_killed(project, held):
    _, node = project.job()
    os.kill(project.cluster.daemon(node), signal.SIGKILL)


def cancelled(project, held):
    project.cluster.ask("scancel", project.job()[0])


def nothing_else(project, held):
    pass


@pytest.mark.parametrize(
    "fault, then, told",
    [
        pytest.param(HOLD, node_down, "Restarts=1", id="a node set down"),
        pytest.param(HOLD, slurmd_killed, "Restarts=1", id="slurmd of a node killed"),
        pytest.param(HOLD, cancelled, r"CANCELLED AT \S+ \*\*\*", id="scancel of a running solve"),
        pytest.param(HOLD, nothing_else, "DUE TO TIME LIMIT", id="a job over its time"),
        pytest.param(TAKE_MEMORY, nothing_else, "exceeded memory limit", id="a job over its memory"),
        pytest.param(FILL_DISK, nothing_else, "File too large", id="a full disk in one job"),
    ],
)
def test_a_run_survives(fault, then, told, project, finished):
    project.set("solve", runtime="attempt if wildcards.layer == '002' else 0")  # a minute for both layers of the job
    run, struck, first = halfway(project, fault)
    written = first.stat()
    then(project, struck)
    assert run.wait(timeout=400) == 0 or project.run(MODEL) == 0, project.said()
    project.let_end(struck)
    check(project, finished, first, written)
    assert re.search(told, project.said() + project.cluster.ask("scontrol", "show", "job"))


@pytest.mark.parametrize("old_job", ["goes on beside the new one", "goes on when all is done", "is cancelled then"])
def test_a_run_whose_snakemake_was_killed_ends_whatever_its_old_job_does(old_job, project, finished):
    run, held, first = halfway(project, HOLD)
    written, (number, _) = first.stat(), project.job()
    run.kill()
    run.wait()
    project.unlock()
    again = project.start(MODEL)
    wait(lambda: project.cluster.ask("squeue", "-h", "-t", "running").count("\n"), "second copy", project.said)
    if old_job == "goes on beside the new one":
        project.let_end(held)
    assert again.wait(timeout=400) == 0, project.said()
    if old_job == "is cancelled then":
        project.cluster.ask("scancel", number)
    project.let_end(held)
    check(project, finished, first, written)


def test_what_was_made_with_other_parameters_is_not_taken_for_done_if_no_job_can_be_submitted(
    cluster, finished, tmp_path
):
    project = Project(cluster, shutil.copytree(finished, tmp_path / "project"))
    params = project.folder / "params.yaml"
    params.write_text(params.read_text().replace("method: mergemoe, ridge: 0.0", "method: mergemoe, ridge: 0.5"))
    project.set("solve", constraint="'nowhere'")
    assert project.run(MODEL) == 1
    assert "Error in group solves" in project.said()
    assert not list((project.folder / "logs" / "slurm").rglob("*.log"))  # no job
    dry = snakemake(project.folder, "--dry-run", MODEL).stdout
    assert re.search(r"^solve +2$", dry, re.MULTILINE) and re.search(r"^assemble +1$", dry, re.MULTILINE)


def check(project, finished, first, written):
    """Everything is there, as on one machine, and stays; the layer that was finished was not computed again."""
    wait(lambda: not project.cluster.ask("squeue", "-h"), "end of the old jobs", project.said)
    for path in (SOLVED, MODEL):
        assert files(project.folder / path) == files(Path(finished, path))
    assert first.stat().st_ino == written.st_ino
    assert not list((project.folder / "results" / ".tmp").glob("*"))
    assert "Nothing to be done" in snakemake(project.folder, "--dry-run", "--max-checksum-file-size", "0", MODEL).stdout
