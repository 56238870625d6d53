"""What goes wrong at night: a killed capture, a full disk, damaged files."""

import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import h5py
import pytest
import warm
from tiny_project import everything, snakemake

from mergemoe.artifacts import store
from mergemoe.artifacts.digests import sha256
from mergemoe.errors import output_of, remade

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

# Runs a stage that dies, without a chance to clean up, when the decoder reaches layer 2.
DIES_IN_LAYER_2 = """
import os, runpy, signal, sys
import stages, mergemoe.calibration.capture as capture
real = capture.run_layer
def dies(layer, hidden, arguments):
    if layer.self_attn.layer_idx == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(layer, hidden, arguments)
capture.run_layer = dies
runpy.run_module("stages.capture", run_name="__main__")
"""

# Runs a stage that saves its state after every step, and dies before the sixth.
DIES_IN_STEP_5 = """
import os, runpy, signal
import stages, mergemoe.reconstruction.descent as descent
real = descent.Descent._advance
def dies(self, batch):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, batch)
descent.SAVE_EVERY, descent.Descent._advance = 0, dies
runpy.run_module("stages.refine", run_name="__main__")
"""


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")


@pytest.fixture(scope="module")
def commands(finished):
    """The command line of every job, by its output, as the workflow runs it but for the log."""
    dry = snakemake(finished, "--dry-run", "--printshellcmds", "--forceall")
    lines = re.findall(r"(python -m stages\..*) 2> ", dry.stdout)
    return {shlex.split(line)[shlex.split(line).index("--out") + 1]: line for line in lines if "--out" in line}


def run(project, command, python=None, **options):
    """Run a job's command line, in a fork of a warm process unless `python` names a real interpreter."""
    environment = {**os.environ, "PATH": f"{os.path.dirname(python or warm.python())}:{os.environ['PATH']}"}
    return subprocess.run(shlex.split(command), cwd=project, env=environment, capture_output=True, text=True, **options)


@pytest.mark.full
def test_a_capture_killed_in_layer_2_does_not_compute_layers_0_and_1_again(project, finished, commands):
    command = commands["results/capture/tiny/mixed"]
    before = sha256(finished / "results" / "capture")
    shutil.rmtree(project / "results" / "capture")
    (project / "dies.py").write_text(DIES_IN_LAYER_2)
    killed = run(project, command.replace("-m stages.capture", "dies.py"))
    assert killed.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert not (project / "results" / "capture" / "tiny" / "mixed").exists()
    again = run(project, command)
    assert again.returncode == 0, again.stderr
    assert "continues after layer 1" in again.stderr
    assert sha256(project / "results" / "capture") == before


@pytest.mark.full
def test_a_refine_killed_in_step_5_goes_on_to_the_same_bytes(project, finished, commands):
    folder = "results/refine/tiny/mixed/half/mergemoe/tuned"
    command = commands[f"{folder}/layer_001.safetensors"]
    before = sha256(finished / folder)
    for path in (project / folder).glob("layer_001.*"):
        path.unlink()
    (project / "dies.py").write_text(DIES_IN_STEP_5)
    killed = run(project, command.replace("-m stages.refine", "dies.py"))
    assert killed.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert list((project / "scratch" / "refine").glob("*/state.safetensors"))
    again = run(project, command)
    assert again.returncode == 0, again.stderr
    assert sha256(project / folder) == before
    assert not list((project / "scratch").rglob("*.*"))


@pytest.mark.full
def test_a_full_disk_leaves_nothing_half_written(project, commands):
    output = "results/models/tiny/mixed/half/mergemoe"
    command = commands[output]
    shutil.rmtree(project / output)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    failed = run(project, command, sys.executable, preexec_fn=small_files)
    assert failed.returncode != 0
    assert re.fullmatch(
        r"error: .*File too large.*\. Make room there, then run the same again.*", failed.stderr.splitlines()[-1]
    )
    assert not (project / output).exists()
    assert list((project / "results" / ".tmp").iterdir()) == []
    assert run(project, command).returncode == 0
    assert (project / output / "model.safetensors").is_file()


def byte_that_counts(path):
    """A byte of the payload: an HDF5 file also holds bytes that mean nothing."""
    if path.suffix != ".h5":
        return path.stat().st_size // 3
    with h5py.File(path) as file:
        chunk = file["hidden"].id.get_chunk_info(0)
    return chunk.byte_offset + chunk.size // 2


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("results/layout/tiny.json", "solve/tiny/mixed/half/mergemoe"),
        ("results/capture/tiny/mixed/layer_001.h5", "solve/tiny/mixed/half/mergemoe"),
        ("results/profile/tiny/mixed/layer_001.json", "solve/tiny/mixed/half/mergemoe"),
        ("results/cluster/tiny/mixed/half/layer_001.json", "solve/tiny/mixed/half/mergemoe"),
        ("results/solve/tiny/mixed/half/mergemoe/layer_001.safetensors", "refine/tiny/mixed/half/mergemoe/tuned"),
    ],
)
def test_a_damaged_input_is_named_and_nothing_is_computed_from_it(project, commands, path, name, damage):
    name = f"results/{name}/layer_001.safetensors"
    command, output = commands[name], project / name
    output.unlink()
    content = bytearray((project / path).read_bytes())
    content[byte_that_counts(project / path)] ^= 1
    (project / path).write_bytes(content if damage == "flip" else content[: len(content) // 3])
    failed = run(project, command)
    assert failed.returncode != 0
    assert f"error: {path} " in failed.stderr
    assert f"`snakemake --cores all --forcerun {output_of(path)}` makes it again" in failed.stderr
    assert not output.exists()


def test_a_damaged_checkpoint_is_not_scored(project, commands):
    score = "results/scores/tiny/mixed/half/mergemoe/fidelity.json"
    command = commands[score]
    weights = project / "results/models/tiny/mixed/half/mergemoe/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    (project / score).unlink()  # as Snakemake does before it runs a job
    failed = run(project, command)
    assert "model.safetensors is not the file that was recorded" in failed.stderr
    assert not (project / score).exists()


@pytest.mark.parametrize(
    ("key", "value", "words"), [("params", {"dtype": "float16"}, "was made with"), ("code", "0", "by other code")]
)
def test_the_report_takes_no_score_that_was_made_otherwise(project, key, value, words):
    score = project / "results/scores/tiny/mixed/half/average/fidelity.json"
    whole = store.read_json(score)
    made = {name: part for name, part in whole.pop("provenance").items() if name not in {"payload", "seal"}}
    before = score.stat()
    store.write_json(score, whole, made | {key: value})
    os.utime(score, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(project / "results/report")
    done = snakemake(project)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "average/fidelity.json" in said and words in said
    assert not (project / "results/report/index.html").exists()


def test_whatever_is_damaged_can_be_made_again_by_the_command_that_the_error_names(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    before = everything(project)
    files = [path for path in before if path.startswith("results/")]
    for path in files:
        assert output_of(path) == output_of(project / path) and output_of(path).startswith("results/")
    planned = snakemake(project, "--dry-run", "--forcerun", *{output_of(path) for path in files})
    assert planned.returncode == 0, planned.stdout + planned.stderr
    kinds = ["results/capture/", "results/models/", "results/scores/tiny/full/reference/", "results/metrics.json"]
    lost = [next(path for path in files if path.startswith(kind)) for kind in kinds]
    for path in lost:
        (project / path).unlink()
    command = re.search("`snakemake (.*)`", remade(*lost))[1]
    done = snakemake(project, *shlex.split(command))
    assert done.returncode == 0, done.stdout + done.stderr
    assert everything(project) == before


@pytest.mark.parametrize("name", [".nfs0001", "link", "folder", "dangling"])
@pytest.mark.parametrize("place", [".tmp", ".finished"])
def test_what_a_file_system_leaves_beside_temporary_files_stops_no_run(finished, tmp_path, place, name):
    project = shutil.copytree(finished, tmp_path / "project")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    odd = project / "results" / place / (f"x.{socket.gethostname()}.99999999" if place == ".tmp" else name)
    odd.parent.mkdir(exist_ok=True)
    if name == "folder":
        odd.mkdir()
    elif name == ".nfs0001":
        odd.write_text("x")
    else:
        odd.symlink_to(tmp_path / ("mine" if name == "link" else "nothing"))
    done = snakemake(project, "--forcerun", "results/metrics.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not os.path.lexists(odd) and (tmp_path / "mine" / "file").read_text() == "mine"


@pytest.mark.parametrize("place", [".tmp", ".finished"])
def test_a_link_in_the_place_of_our_own_folders_is_refused(finished, tmp_path, place):
    project = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(project / "results" / place, ignore_errors=True)
    (project / "results" / place).symlink_to(tmp_path)
    done = snakemake(project)
    assert done.returncode == 1 and f"results/{place} is a link, and a folder belongs there. Delete it" in done.stderr


def test_artifacts_from_the_future_are_named_before_a_job_makes_any_again(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    before, soon = everything(project), time.time() + 3600
    path = "results/layout/tiny.json"
    os.utime(project / path, (soon, soon))
    done = snakemake(project, "--forcerun", "results/metrics.json")
    assert done.returncode == 1 and re.search(rf"{path} is from the future, by 3,\d+ s", done.stderr), done.stderr
    assert "Finished jobid" not in done.stderr and everything(project) == before
    assert snakemake(project, "--touch", "--forceall").returncode == 0
    again = snakemake(project)
    assert again.returncode == 0 and "Nothing to be done" in again.stderr and everything(project) == before


def test_python_without_docstrings_is_refused_at_the_start(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    command = [sys.executable, "-OO", "-m", "snakemake", "--cores", "1"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1 and "PYTHONOPTIMIZE is 2" in done.stderr and "Traceback" not in done.stderr


SCORE = "results/scores/tiny/full/blimp.json"
FORCED = {
    "rule": ("--forcerun", "evaluate"),
    "file": ("--forcerun", SCORE),
    "target": ("--force",),
    "all": ("--forceall",),
}


@pytest.mark.full
@pytest.mark.parametrize("way", FORCED)
def test_what_is_forced_is_made_again_though_another_copy_has_finished_it(finished, way, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(project / "results/report")  # the whole is not finished, so outputs are kept
    said = project / "logs/evaluate/tiny/full/blimp.log"
    for options, reused in ((FORCED["file"], False), ((), True), (FORCED[way], False)):
        if not options:
            (project / SCORE).unlink()
        done = snakemake(project, *options, "--allowed-rules", "evaluate", "--", SCORE)
        assert done.returncode == 0, done.stderr
        assert ("another copy of this job has finished it" in said.read_text()) == reused
