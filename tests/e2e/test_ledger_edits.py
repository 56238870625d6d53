"""What lies around results/ was cut, edited or linked: the ledger says so by name, and no advice of it loses data."""

import os
import shutil

import pytest
import yaml
from project import commit, run

from mergemoe.workflow.ledger import dvc_lock

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]

PAGE = "results/report/provenance.json"
GROUPS = "results/cluster/tiny/mixed/half/layer_001.json"


@pytest.fixture
def project(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "project", symlinks=True)


def said_by(project, *command):
    """What a command of ours says that must end in a verdict or an error, not in a traceback."""
    done = run(project, "mergemoe", *command, ok=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_an_audit_misses_what_was_cut_from_dvc_lock_and_dvc_yaml(project):
    lock = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(lock[: lock.index("  evaluate:")])
    said = said_by(project, "audit")
    assert "results/scores/tiny/full/blimp.json is not in dvc.lock" in said
    assert "verdict: different. The artifacts above fail" in said
    (project / "results/scores/tiny/full/blimp.json").unlink()  # of a stage that is not locked
    assert "results/scores/tiny/full/blimp.json is missing" in said_by(project, "audit")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (project / "dvc.yaml").write_text("stages: {}\n")
    said = said_by(project, "audit")
    assert "results/layout/tiny.json is not in dvc.lock" in said and "verdict: different" in said


def test_a_link_below_results_is_refused_by_runs_records_and_audits(project, tmp_path):
    folder = project / "results/solve/tiny/mixed/half"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    for command in ("record", "audit"):
        assert "results/solve/tiny/mixed/half is a link, which neither" in said_by(project, command)
    done = run(project, "snakemake", "--dry-run", ok=False)
    assert done.returncode != 0 and "half is a link, which neither" in done.stdout + done.stderr
    assert "Put the file or folder itself there (`cp -rL`)" in done.stdout + done.stderr
    folder.unlink()
    shutil.copytree(tmp_path / "elsewhere", folder)
    assert "verdict: identical" in run(project, "mergemoe", "audit").stdout


def test_what_is_no_file_ends_an_audit_by_its_name(project):
    for path in (GROUPS, PAGE, "results/metrics.json", "results/report/index.html"):
        (project / path).unlink()
    os.mkfifo(project / GROUPS)  # to open it would wait for a writer
    (project / PAGE).symlink_to("/dev/zero")  # it never ends
    (project / "results/metrics.json").mkdir()
    (project / "results/report/index.html").symlink_to("nowhere")
    said = said_by(project, "audit")
    assert f"{GROUPS} is a pipe" in said and f"{PAGE} is a link" in said
    assert "index.html is a link" in said


def test_a_cut_log_stops_a_record_before_anything_is_written(project):
    (project / "dvc.lock").unlink()
    log = next((project / "logs/solve").rglob("*.log"))
    whole = log.read_text()
    log.write_text(whole[: whole.index("ran in: ") + 20])
    kept = (project / "envs/recorded.json").read_bytes()
    assert f"{log.relative_to(project)} cannot be read" in said_by(project, "record")
    assert not (project / "dvc.lock").exists() and (project / "envs/recorded.json").read_bytes() == kept
    log.write_text(whole)
    (project / "envs/recorded.json").unlink()
    run(project, "mergemoe", "record")
    (project / "envs/recorded.json").unlink()  # as after a record that was killed
    assert "as before" in run(project, "mergemoe", "record").stdout
    assert (project / "envs/recorded.json").read_bytes() == kept


@pytest.mark.parametrize("remote", [False, True])
def test_damaged_files_of_the_cache_are_named_with_what_brings_them_back(project, tmp_path, remote):
    if remote:
        run(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
        commit(project, "A remote")
        run(project, "dvc", "push")
    cache = project / ".dvc/cache"
    md5 = next(entry.md5 for entry in dvc_lock.locked_outs(project) if entry.path == "results/cluster")
    listed = dvc_lock._object(cache, md5)
    one = dvc_lock._object(cache, dvc_lock._members(listed)[0])
    for path in (one, listed):  # a file first, then the list of files
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-20] + b"0" * 20 if path == one else whole[:-20])
        if path == one:  # the tree has what it held, which another revision would replace
            said = said_by(project, "restore", "main")
            assert f"cache 1 files are damaged: {path}. What they held is below results/ now" in said
        shutil.rmtree(project / "results/cluster", ignore_errors=True)
        said = said_by(project, "restore", "main")
        assert f"Of DVC's cache 1 files are damaged: {path}" in said and "Delete .dvc/cache" not in said
        assert ("Delete these, and run this again: it fetches" in said) == remote
        assert ("No remote has copies of them" in said) != remote
        path.unlink()
        if not remote:  # but another copy of the cache
            path.write_bytes(whole)
        shutil.rmtree(project / "results/cluster", ignore_errors=True)  # DVC may have put the damaged file there
        run(project, "mergemoe", "restore", "main")
    assert "verdict: identical" in run(project, "mergemoe", "audit").stdout


def test_a_commit_with_conflict_markers_in_its_numbers(project):
    text = (project / "results/metrics.json").read_text()
    (project / "results/metrics.json").write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    commit(project, "A conflict")
    assert "results/metrics.json of " in (said := said_by(project, "audit")) and "cannot be read" in said


def test_lock_and_settings_that_were_cut_are_errors_in_one_line(project):
    settings = project / ".dvc/config"
    settings.write_text(settings.read_text() * 2)
    said_by(project, "audit", "HEAD")
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"]["evaluate"] = 3
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    for command in ("audit", "record"):
        assert "dvc.lock cannot be read" in said_by(project, command)
