"""An audit of what does not come out again: it says where paths part, by how much, and what that does to the scores."""

import json

import pytest
from project import change, commit, put_under_git, run

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def drifting(finished, tmp_path_factory):
    """A recorded project whose least squares drift by as much as the environment says, which no provenance can see."""
    project = put_under_git(finished, tmp_path_factory.mktemp("audit") / "project")
    drift = 'solution.down * (1 + float(__import__("os").environ.get("DRIFT", "0")))'
    change(project, "with_down(expert, solution.down)", f"with_down(expert, {drift})", "mergemoe/methods/mergemoe.py")
    run(project, "snakemake")
    run(project, "mergemoe", "record")
    commit(project, "Recorded")
    return project


def audited(project, *args, **variables):
    done = run(project, "mergemoe", "audit", *args, ok=False, **variables)
    written = max((project / "logs/audit").iterdir(), key=lambda file: file.stat().st_mtime)
    return done, json.loads(written.read_text())


def test_a_rerun_that_differs_names_the_first_stage_and_the_largest_difference(drifting):
    done, found = audited(drifting, "--rerun", DRIFT="0.25")
    assert done.returncode == 1
    assert "verdict: as recorded, but a rerun gives other results, from the stage solve on." in done.stdout
    assert found["holds"] and not found["identical"] and found["parts_at"] == "solve"
    stages = found["stages"]
    assert all(stages[name]["differ"] == [] for name in ("layout", "calibrate", "capture", "profile", "cluster"))
    assert all("/mergemoe/" in path for path in stages["solve"]["differ"])
    assert stages["solve"]["largest"] == pytest.approx(0.25, rel=0.02)  # in bfloat16
    assert found["metrics"]["differ"].keys() >= {"tiny/mixed/half/mergemoe fidelity/kl"}
    assert not any("average" in key for key in found["metrics"]["differ"])
    assert "numbers are not the committed ones, by at most " in done.stdout and "standard errors" in done.stdout


def test_results_made_anew_by_another_machine_say_how_they_compare(drifting, tmp_path):
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(drifting), str(clone))
    run(clone, "snakemake", DRIFT="0.25")
    done, found = audited(clone)
    assert done.returncode == 1
    assert (
        "verdict: rebuilt since recording: provenance is valid, but files differ from dvc.lock from stage solve on"
        in (done.stdout)
    )
    assert [name for name, one in found["stages"].items() if not one["as_recorded"]][0] == "solve"
    assert not any(one["faults"] for one in found["stages"].values())


def test_a_recomputation_that_fails_is_told_with_its_reason(drifting):
    done = run(drifting, "mergemoe", "audit", "--rerun", ok=False, DRIFT="much")
    assert done.returncode != 0 and "Traceback" not in done.stderr.splitlines()[-1]
    assert "could not convert string to float: 'much'" in done.stderr


def test_what_cannot_be_audited_is_refused(drifting, tmp_path):
    assert "no such revision in git" in run(drifting, "mergemoe", "audit", "nowhere", ok=False).stderr
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(drifting), str(clone))
    (clone / "dvc.lock").unlink()
    assert "dvc.lock is missing: nothing was recorded yet" in run(clone, "mergemoe", "audit", ok=False).stderr
    assert "dvc.lock differs from it. Commit it" in run(clone, "mergemoe", "audit", "--rerun", ok=False).stderr
