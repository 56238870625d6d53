"""The ledger's whole story: recorded, pushed, restored elsewhere, computed again, changed, and brought back."""

import json
import shutil

import pytest
import yaml
from project import change, commit, put_under_git, run

from mergemoe.artifacts.digests import sha256
from mergemoe.workflow.ledger import dvc_lock

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]


def results(project):
    return sha256(project / "results")


def nothing_to_do(project):
    done = run(project, "snakemake")
    return "Nothing to be done" in done.stdout + done.stderr


def audited(project, *args, ok=True):
    """An audit's findings, and what it printed."""
    done = run(project, "mergemoe", "audit", *args, ok=ok)
    path = max((project / "logs/audit").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(path.read_text()), done.stdout


def test_what_was_recorded_comes_back_elsewhere_and_comes_out_again(finished, tmp_path):
    project = put_under_git(finished, tmp_path / "project")
    run(project, "dvc", "remote", "add", "--default", "store", "../store")
    said = run(project, "mergemoe", "record").stdout
    assert said.startswith("recorded ")
    first, made = commit(project, "First"), results(project)
    run(project, "dvc", "push")
    assert run(project, "mergemoe", "record").stdout.endswith("as before\n")

    # elsewhere, with nothing but git and the remote
    elsewhere = tmp_path / "elsewhere" / "project"
    elsewhere.parent.mkdir()
    run(tmp_path, "git", "clone", "--quiet", str(project), str(elsewhere))
    shutil.move(tmp_path / "store", tmp_path / "elsewhere" / "store")
    run(elsewhere, "mergemoe", "restore", "main")
    assert results(elsewhere) == made
    assert nothing_to_do(elsewhere)
    found, text = audited(elsewhere, "--rerun")
    assert found["identical"] and found["again"]["differ"] == 0 and found["parts_at"] is None
    assert "verdict: identical. All " in text

    # one parameter changes; what reruns is what lies downstream
    change(elsewhere, "ridge: 0.0", "ridge: 0.1")
    refused = run(elsewhere, "mergemoe", "record", ok=False)
    assert refused.returncode != 0 and "jobs are pending (" in refused.stderr and "solve 2" in refused.stderr
    run(elsewhere, "snakemake")
    run(elsewhere, "mergemoe", "record")
    second, damped = commit(elsewhere, "Damped"), results(elsewhere)
    assert damped != made
    shown = json.loads(run(elsewhere, "dvc", "metrics", "diff", "--json", first, second).stdout)
    runs = {key.split(".")[2] for key in shown["results/metrics.json"]}
    assert runs == {"mixed/half/mergemoe", "mixed/half/mergemoe+tuned"}

    # the first revision comes back whole, and later edits rerun exactly what they should
    run(elsewhere, "mergemoe", "restore", first)
    assert results(elsewhere) == made
    found, _ = audited(elsewhere)
    assert found["identical"]
    change(elsewhere, "ridge: 0.0", "ridge: 0.2")
    planned = run(elsewhere, "snakemake", "--dry-run", "--quiet", "rules").stdout
    assert (
        {"solve", "assemble", "report"} <= set(planned.split())
        and "cluster" not in planned
        and "capture" not in planned
    )
    run(elsewhere, "git", "checkout", "--quiet", "params.yaml")
    found, text = audited(elsewhere, second)
    assert found["identical"] and text.startswith(f"audit of {second[:12]}")
    run(elsewhere, "mergemoe", "restore", "main")
    assert results(elsewhere) == damped


def test_a_stage_that_no_run_needs_any_more_leaves_the_ledger_and_comes_back(recorded, tmp_path):
    project = shutil.copytree(recorded, tmp_path / "project")
    made = results(project)
    change(project, "  - [tiny, mixed, half, mergemoe, tuned]\n", "")
    run(project, "snakemake")
    refused = run(project, "mergemoe", "record", ok=False)
    assert refused.returncode != 0 and "results/refine/" in refused.stderr and "belongs to no run" in refused.stderr
    shutil.rmtree(project / "results/refine")
    for folder in ("models", "scores"):
        shutil.rmtree(project / f"results/{folder}/tiny/mixed/half/mergemoe+tuned")
    run(project, "mergemoe", "record")
    for file in ("dvc.yaml", "dvc.lock"):
        assert "refine" not in yaml.safe_load((project / file).read_text())["stages"], file
    commit(project, "Plain")
    found, _ = audited(project)
    assert found["identical"] and "refine" not in found["stages"]
    assert nothing_to_do(project) and "Running stage" not in run(project, "dvc", "repro").stdout
    run(project, "mergemoe", "restore", "HEAD~1")
    assert results(project) == made and nothing_to_do(project)


def test_repro_and_snakemake_have_nothing_to_do_after_one_another_and_lock_the_same(recorded, tmp_path):
    project = shutil.copytree(recorded, tmp_path / "project")
    locked = (project / "dvc.lock").read_bytes()
    assert "Running stage" not in run(project, "dvc", "repro").stdout
    assert nothing_to_do(project)
    assert "up to date" in run(project, "dvc", "status").stdout
    for folder in ("results", ".snakemake"):
        shutil.rmtree(project / folder)
    run(project, "dvc", "repro", "--force", "--no-run-cache")
    assert (project / "dvc.lock").read_bytes() == locked
    assert nothing_to_do(project)
    assert run(project, "mergemoe", "record").stdout.endswith("as before\n")
    assert {entry.stage for entry in dvc_lock.locked_outs(project)} >= {"capture", "solve", "refine", "report"}
