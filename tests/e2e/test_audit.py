"""An audit of what does not come out again: it says where paths part, by how much, and what that does to the scores."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import warm
from project import change, commit, environment, put_under_git, run
from safetensors.torch import load_file, save_file

from mergemoe.artifacts import digests, store
from mergemoe.environment import describe_environment
from mergemoe.workflow.comparison.verdict import largest
from mergemoe.workflow.ledger.audit import audit_project
from mergemoe.workflow.ledger.audit_text import format_audit
from mergemoe.workflow.ledger.environments import rerun_environment

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]


# What no provenance can see: a machine that computes otherwise, by as much as its environment says.
LIES = {
    "mergemoe/methods/mergemoe.py": (
        "with_down(expert, solution.down)",
        "with_down(expert, lie(solution.down))",
        """

def lie(down):
    import os

    down = down * (1 + float(os.environ.get("DRIFT", "0")))
    down.view(-1)[0] += float(os.environ.get("BUMP", "0"))
    return down
""",
    ),
    "mergemoe/merging/constant_moments.py": (
        "members, p = self._features(x)",
        "members, p = self._features(lie(x))",
        """

def lie(rows):
    import os

    return rows.flip(-2) if "FLIP" in os.environ else rows
""",
    ),
    "mergemoe/devices.py": (
        "torch.set_num_threads(threads)",
        "torch.set_num_threads(lie(threads))",
        """

def lie(threads):
    import os

    return threads * int(os.environ.get("TIMES", "1"))
""",
    ),
    "mergemoe/grouping/cluster.py": (
        "expert_map, cost = grouped",
        "expert_map, cost = lie(*grouped)",
        """

def lie(groups, cost):
    import os

    i = next(i for i, group in enumerate(groups) if group != groups[0])
    if {"SWAP", "TIE"} & os.environ.keys():
        groups[0], groups[i] = groups[i], groups[0]
    return groups, cost * (2 if "SWAP" in os.environ else 1 + 1e-9 * ("TIE" in os.environ))
""",
    ),
}


@pytest.fixture(scope="module")
def drifting(finished, tmp_path_factory):
    project = put_under_git(finished, tmp_path_factory.mktemp("audit") / "project")
    for file, (old, new, function) in LIES.items():
        change(project, old, new, file)
        (project / file).write_text((project / file).read_text() + function)
    run(project, "snakemake")
    run(project, "mergemoe", "record")
    commit(project, "Recorded")
    return project


def audited(project, *args, **variables):
    done = run(project, "mergemoe", "audit", *args, ok=False, **variables)
    written = max((project / "logs/audit").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return done, json.loads(written.read_text())


def elsewhere(drifting, folder, **variables):
    """Return a stranger's clone, computed there from nothing."""
    clone = folder / "clone"
    run(folder, "git", "clone", "--quiet", str(drifting), str(clone))
    run(clone, "snakemake", **variables)
    return clone


def test_a_rerun_that_differs_names_the_first_stage_and_the_largest_difference(drifting):
    done, found = audited(drifting, "--rerun", DRIFT="0.25")
    assert done.returncode == 1
    said = "verdict: different. All is as recorded, but a rerun gives other results, from the stage solve on."
    assert said in done.stdout
    assert found["holds"] and not found["identical"] and found["parts_at"] == "solve"
    stages = found["stages"]
    assert all(stages[name]["differ"] == [] for name in ("layout", "calibrate", "capture", "profile", "cluster"))
    assert all("/mergemoe/" in path for path in stages["solve"]["differ"])
    sizes = [one["numbers"]["down.N"] for one in stages["solve"]["apart"].values() if "down.N" in one["numbers"]]
    assert 0.1 < max(sizes) < 0.6  # a quarter, as eight sums tell it
    assert found["metrics"]["differ"].keys() >= {"tiny/mixed/half/mergemoe fidelity/kl"}
    assert not any("average" in key for key in found["metrics"]["differ"])
    assert "numbers are not the committed ones, by at most " in done.stdout and "standard errors" in done.stdout


OTHER = {"ATEN_CPU_CAPABILITY": "default"}  # the arithmetic of a processor without AVX
MACHINES = {
    "without AVX": OTHER,
    "MKL of any maker": {"MKL_CBWR": "COMPATIBLE", "TIMES": "2"},
    "sums in another order": {"FLIP": "1"},
}


@pytest.fixture(scope="module", params=MACHINES)
def other(request, drifting, tmp_path_factory):
    return elsewhere(drifting, tmp_path_factory.mktemp("other"), **MACHINES[request.param])


def test_results_of_another_machine_are_equivalent(other):
    done, found = audited(other)
    assert done.returncode == 0, done.stdout
    assert found["verdict"] == "equivalent" and found["reasons"] == [] and not found["identical"]
    # Sums in another order may say the same to all digits that are compared, in other bytes.
    moved = any(map(largest, found["stages"].values())) or found["metrics"]["differ"]
    told = "Every decision is as recorded; rounding moves " if moved else "All results say the same; "
    assert f"verdict: equivalent. {told}" in done.stdout
    assert audited(other, "--strict")[0].returncode == 2


def test_a_record_without_summaries_cannot_call_a_run_equivalent(other):
    kept = (other / "envs/summaries.json").read_text()
    (other / "envs/summaries.json").unlink()
    done, found = audited(other)
    (other / "envs/summaries.json").write_text(kept)
    assert done.returncode == 1 and found["verdict"] == "different"
    assert "results differ from the recorded ones, from the stage " in done.stdout
    assert "the record is not the committed one:\n  envs/summaries.json\n" in done.stdout


def test_a_rerun_on_another_machine_is_equivalent(drifting):
    done, found = audited(drifting, "--rerun", "--strict", **OTHER)
    assert done.returncode == 2 and found["verdict"] == "equivalent", done.stdout
    assert found["parts_at"] == "capture"


def test_a_weight_and_a_group_that_are_others_make_a_run_different(drifting, tmp_path):
    done, found = audited(elsewhere(drifting, tmp_path, BUMP="0.05", SWAP="1"))
    assert done.returncode == 1 and found["verdict"] == "different"
    for part in (": down.N differs by", ": expert_map of 0, "):
        assert any(part in reason for reason in found["reasons"])
    assert ": expert_map of 0, " in done.stdout
    assert not any(one["faults"] for one in found["stages"].values())


def test_a_grouping_of_the_same_cost_is_a_near_tie_and_scores_judge_what_follows(drifting, tmp_path):
    done, found = audited(elsewhere(drifting, tmp_path, TIE="1"))
    clusters = [path for path in found["stages"]["cluster"]["apart"] if "/half/" in path]
    assert clusters and found["stages"]["cluster"]["by_scores"] == clusters
    assert "\nnear-ties:\n" in done.stdout and "cost the same but for 1.0e-09" in done.stdout
    assert found["stages"]["solve"]["by_scores"] and found["stages"]["assemble"]["by_scores"]
    assert all(reason.startswith("metrics.json: ") for reason in found["reasons"])
    assert (found["verdict"] == "equivalent") == (not found["reasons"])


def test_another_document_and_another_original_make_a_run_different(drifting, tmp_path):
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(drifting), str(clone))
    text, weights = clone / "data/calibration/mixed.jsonl.gz", clone / "tiny-moe/model.safetensors"
    rows = gzip.decompress(text.read_bytes()).splitlines(keepends=True)
    manifest = json.loads((drifting / "results/calibrate/tiny/mixed/tokens.json").read_text())
    rows[manifest["documents"][0]["document"]] = json.dumps({"text": "Another text. " * 50}).encode() + b"\n"
    text.write_bytes(gzip.compress(b"".join(rows)))
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.experts.0.down_proj.weight"][0, 0] += 1e-3
    save_file(tensors, weights, {"format": "pt"})
    run(clone, "snakemake")
    done, found = audited(clone)
    assert done.returncode == 1 and found["verdict"] == "different"
    assert "data/calibration/mixed.jsonl.gz is not the recorded file" in found["reasons"]
    for part in ("tokens.safetensors: input_ids is another", "layout/tiny.json: files.model.safetensors is another"):
        assert any(part in reason for reason in found["reasons"])


def test_a_score_that_was_edited_makes_a_run_different(drifting, tmp_path):
    project = shutil.copytree(drifting, tmp_path / "project")
    path = project / "results/scores/tiny/mixed/half/mergemoe/fidelity.json"
    whole = json.loads(path.read_text())
    whole["scores"]["kl"] *= 0.5
    path.write_text(json.dumps(whole))
    done, found = audited(project)
    assert done.returncode == 1 and found["verdict"] == "different"
    assert "mergemoe/fidelity.json" in found["reasons"][0] and "does not hold what was written" in done.stdout


def seal_again(path):
    """Give an artifact the seal, and the digests of listed files, that fit what it is now."""
    whole = json.loads(path.read_text())
    made = {key: value for key, value in whole.pop("provenance").items() if key not in {"payload", "seal"}}
    for name in whole.get("files", {}):
        whole["files"][name] = digests.sha256(path.parent / name)
    store.write_json(path, whole, made)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("quality.csv", "results/quality.csv is not what the results give now"),
        ("report/index.html", "results/report/index.html is not what the results give now"),
        ("models/tiny/mixed/half/mergemoe/modeling_mergemoe.py", "modeling_mergemoe.py: the file is another"),
    ],
)
def test_a_file_that_was_edited_and_sealed_again_is_different(drifting, tmp_path, name, reason):
    project = shutil.copytree(drifting, tmp_path / "project")
    path = project / "results" / name
    path.write_text(path.read_text() + " ")
    listed = path.parent if name.startswith("models") else project / "results/report"
    seal_again(listed / "provenance.json")
    done, found = audited(project)
    assert done.returncode == 1 and found["verdict"] == "different"
    assert any(reason in fact for fact in found["reasons"]), found["reasons"]


RECORD = "results/models/tiny/mixed/half/mergemoe/provenance.json"


@pytest.mark.parametrize(
    "path", ["results/report/provenance.json", "results/report/index.html", "results/metrics.json"]
)
def test_a_record_that_lists_the_files_of_another_job_is_a_fault(drifting, tmp_path, path):
    project = shutil.copytree(drifting, tmp_path / "project")
    whole = json.loads((project / RECORD).read_text())
    whole["files"][os.path.relpath(path, os.path.dirname(RECORD))] = ""
    (project / RECORD).write_text(json.dumps(whole))
    seal_again(project / RECORD)
    (project / path).write_text("{")
    done, found = audited(project)
    assert done.returncode == 1 and f"{RECORD} lists {path}, which is no file of its job" in found["reasons"]
    assert any(path in reason and RECORD not in reason for reason in found["reasons"])  # its own check is made


ODD = {
    "a provenance that is text": ("config.json", lambda whole: whole.update(provenance="x")),
    "a list of files": ("provenance.json", lambda whole: whole.update(files=["x"])),
    "a list of inputs": ("provenance.json", lambda whole: whole["provenance"].update(inputs=["x"])),
    "another cost": ("provenance.json", lambda whole: whole["cost"].update(parameters=1)),
}


@pytest.mark.parametrize("name", ODD)
def test_records_of_any_shape_are_judged(drifting, tmp_path, name):
    project = shutil.copytree(drifting, tmp_path / "project")
    file, change_it = ODD[name]
    path = (project / RECORD).parent / file
    whole = json.loads(path.read_text())
    change_it(whole)
    if file == "provenance.json":
        made = {key: value for key, value in whole.pop("provenance").items() if key not in {"payload", "seal"}}
        store.write_json(path, whole, made)
    else:
        path.write_text(json.dumps(whole))
        seal_again(project / RECORD)
    done, found = audited(project)
    assert done.returncode == 1 and found["verdict"] == "different" and "Traceback" not in done.stderr


def test_a_near_tie_excuses_no_other_code_embedding_or_prompt(drifting, tmp_path):
    clone = elsewhere(drifting, tmp_path, TIE="1")
    code = (clone / RECORD).parent / "modeling_mergemoe.py"
    code.write_text(code.read_text() + "# more")
    weights = (clone / RECORD).parent / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][:5] = 0
    save_file(tensors, weights, {"format": "pt"})
    seal_again(clone / RECORD)
    _, found = audited(clone)
    assert any("modeling_mergemoe.py: the file is another" in reason for reason in found["reasons"])
    assert any("model.embed_tokens.weight differs by" in reason for reason in found["reasons"])


def test_a_metrics_file_that_cannot_be_read_is_one_fault(drifting, tmp_path):
    project = shutil.copytree(drifting, tmp_path / "project")
    (project / "results/metrics.json").write_text("{")
    done, found = audited(project)
    assert found["verdict"] == "different" and found["metrics"] == {"numbers": 0, "differ": {}}
    assert "numbers are not the committed ones" not in done.stdout and "metrics.json" in done.stdout


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


def test_a_rerun_in_the_environment_of_the_revision_takes_its_python_and_says_so(drifting, monkeypatch):
    for name, value in environment(drifting).items():
        monkeypatch.setenv(name, value)
    other = {**describe_environment(), "packages": {"torch": "0.1"}}
    monkeypatch.setattr(rerun_environment, "install_environment", lambda tree, folder: Path(warm.python()))
    monkeypatch.setattr(rerun_environment, "describe_python", lambda python: other)
    monkeypatch.setenv("PYTHONPATH", "nowhere")  # which the other Python must not see
    (drifting / "envs/recorded.json").write_text('{"stages": {}}')  # the revision's own record counts
    found = audit_project(drifting, "HEAD", rerun=True, environment=True)
    run(drifting, "git", "checkout", "--quiet", "envs/recorded.json")
    assert found["verdict"] == "identical" and found["rerun_in"] == {"lock": "envs/cpu.txt", **other}
    assert found["environment"] == []  # which the logs of the rerun's jobs tell
    said = format_audit(found)
    assert f"computed again with:\n  the packages of envs/cpu.txt, Python {other['python']}\n" in said
    refused = run(drifting, "mergemoe", "audit", "--rerun", "--environment", ok=False)
    assert refused.returncode != 0 and "the revision has no envs/cpu.txt" in refused.stderr


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_audit_that_is_killed_leaves_no_clone_behind(drifting, tmp_path, number):
    command = [sys.executable, "-m", "mergemoe.cli", "audit"]  # a real one: a signal would not reach a warm one
    variables = environment(drifting) | {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    with (tmp_path / "said").open("w") as said:
        audit = subprocess.Popen([*command, "--rerun"], cwd=drifting, env=variables, stdout=said, stderr=said)
    ends = time.monotonic() + 240
    while not list(tmp_path.glob("mergemoe-*/**/project/logs/**/*.log")):  # a job of the rerun has begun
        assert audit.poll() is None and time.monotonic() < ends, (tmp_path / "said").read_text()
        time.sleep(0.2)
    audit.send_signal(number)
    audit.wait()
    if number == signal.SIGKILL:
        assert list(tmp_path.glob("mergemoe-*")) and (orphans := working_below(tmp_path))
        for orphan in orphans:
            orphan.kill()
        subprocess.run([*command, "HEAD"], cwd=drifting, env=variables, capture_output=True, check=True)
    else:
        assert audit.returncode in {128 + number, -number}
    assert not list(tmp_path.glob("mergemoe-*"))
    ends = time.monotonic() + 60  # a crowded machine takes seconds to end what lost its parent
    while working_below(tmp_path):
        assert time.monotonic() < ends
        time.sleep(0.2)


def working_below(folder):
    """The processes that work in a folder, or did before it was deleted."""
    return [one for one in psutil.process_iter(["cwd"]) if (one.info["cwd"] or "").startswith(str(folder))]
