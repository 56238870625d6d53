"""No stage reads a file of a checkpoint that is not the recorded one, whatever its time says."""

import shutil

import chance
import pytest
from project import run
from tiny_project import snakemake

from mergemoe.artifacts.stages import STAGES
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.config.params_file import read_file
from mergemoe.workflow.ledger import verify_results
from stages.support import expected
from stages.support.graph import Graph

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]
READERS = [stage for stage in STAGES.values() if "layout" in stage.reads and stage.name not in {"budget", "report"}]
RUN = "tiny/mixed/half/average"
PLACE = {"model": "tiny", "calibrate": "mixed", "cluster": "half", "solve": "mergemoe", "refine": "tuned"}
PLACE |= {"fitted": "mergemoe", "quantize": "g4", "layer": "001", "solution": "mergemoe", "task": "blimp"}
SIZED = "  sized: {by: weights, experts: 0.5, layers: all, budget: error}\n"
ROUNDED = "quantize:\n  g4: {by: gptq, bits: 4, group: 8}\n"


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")


def job(project, name, **place):
    """Run one job again, alone; return its exit status and what was said."""
    target = STAGES[name].output.format(**PLACE | place)
    done = snakemake(project, "--forcerun", target, "--allowed-rules", name, "--", target)
    return done.returncode, done.stdout + done.stderr + "".join(
        log.read_text() for log in project.rglob("logs/**/*.log")
    )


def change(path):
    """Change a byte of weights, or add a blank to JSON, and keep the file's time; return what was there."""
    whole = path.read_bytes()
    chance.write_unseen(path, whole + b" " if path.suffix == ".json" else whole[:-1] + bytes([whole[-1] ^ 2]))
    return whole


def test_every_stage_refuses_another_original(project):
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        params.replace("refine:\n", f"{SIZED}{ROUNDED}refine:\n", 1)
        + "  - [tiny, mixed, sized, average]\n  - [tiny, mixed, half, mergemoe, null, g4]\n"
    )
    for stage in reversed(READERS):  # snakemake deletes what a failed job had made
        file = project / "tiny-moe" / ("tokenizer.json" if stage.checkpoint == "none" else "model.safetensors")
        place = {"subject": "full"} | ({"cluster": "sized"} if stage.name == "curve" else {})
        before = change(file)
        status, said = job(project, stage.name, **place)
        chance.write_unseen(file, before)
        shutil.rmtree(project / "logs", ignore_errors=True)
        assert status, stage.name
        assert f"tiny-moe/{file.name} is not the file that was recorded" in said, (stage.name, said)


def test_a_layer_of_a_run_is_compared_with_the_recorded_original(project):
    change(project / "tiny-moe" / "model.safetensors")
    status, said = job(project, "fidelity", subject="mixed/half/average")
    assert status, said
    assert "tiny-moe/model.safetensors is not the file that was recorded" in said


def test_a_file_that_no_job_wrote_is_refused_in_a_compressed_checkpoint(project, monkeypatch):
    name = "additional_chat_templates/a.jinja"
    planted = project / "results/models" / RUN / name
    planted.parent.mkdir()
    planted.write_text("{}")
    said = f"results/models/{RUN}/{name} was not written by the job that made"
    monkeypatch.chdir(project)
    claims = expected.every_claim(Graph(read_params(read_file(project / "params.yaml"))))
    faults = verify_results.check_results(project, claims)  # those of record and of audit
    assert {fault.path for fault in faults} == {f"results/models/{RUN}/{name}"}
    exported = run(project, "mergemoe", "export", RUN, "out", ok=False)
    assert exported.returncode
    assert said in exported.stderr
    assert not (project / "out").exists()
    for stage in ("evaluate", "fidelity", "generate"):
        status, told = job(project, stage, subject="mixed/half/average")
        assert status, stage
        assert said in told, (stage, told)
