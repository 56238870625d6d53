"""Where Snakemake or DVC alone would bless a stale or damaged artifact, the ledger refuses it by name.

Each test first shows the trap: the tools by themselves see nothing, for their notes are old, or a file's time and size
tell them nothing.
"""

import json
import os
import shutil
import time

import pytest
from project import change, commit, run

from mergemoe.artifacts import digests, run_guard, store
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock, record, verify_results
from mergemoe.workflow.ledger.restore import restore_revision

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]

GROUPS = "results/cluster/tiny/mixed/half/layer_001.json"


@pytest.fixture(scope="module")
def twice(recorded, tmp_path_factory):
    """A project that was recorded with half of the experts, then with a quarter; what git has is the second."""
    project = shutil.copytree(recorded, tmp_path_factory.mktemp("traps") / "project")
    run(project, "git", "tag", "half")
    change(project, "experts: 0.5", "experts: 0.25")
    run(project, "snakemake")
    run(project, "mergemoe", "record")
    commit(project, "Quarter")
    run(project, "git", "tag", "quarter")
    return project


@pytest.fixture
def project(twice, tmp_path):
    """A copy of it, as it was recorded last; times of files stay, DVC's states are of this copy."""
    shutil.copytree(twice, tmp_path / "project")
    run(tmp_path / "project", "dvc", "status")
    return tmp_path / "project"


def nothing_to_do(project):
    done = run(project, "snakemake", "--dry-run")
    return "Nothing to be done" in done.stdout + done.stderr


def refused(project, *command):
    """What a command of ours says that must refuse; nothing is recorded then."""
    before = (project / "dvc.lock").read_bytes()
    done = run(project, "mergemoe", *command, ok=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert (project / "dvc.lock").read_bytes() == before
    return done.stdout + done.stderr


def checked_out(project, revision):
    """Bring a revision back by hand, as one does who does not know `mergemoe restore`."""
    run(project, "git", "checkout", "--quiet", revision)
    run(project, "dvc", "checkout")


def test_stale_metadata_after_a_checkout(project):
    checked_out(project, "half")
    assert not nothing_to_do(project)  # the notes are of the other revision
    checked_out(project, "quarter")
    run(project, "mergemoe", "restore", "half")
    assert nothing_to_do(project)


def test_hand_edited_params_over_restored_artifacts(project):
    checked_out(project, "half")
    change(project, "experts: 0.5", "experts: 0.25")  # what Snakemake's notes say of the artifacts that were there
    now = time.time()
    for path in [
        *project.glob("results/**/*"),
        *project.glob("logs/**/*"),
    ]:  # as a copy that keeps no times leaves them
        os.utime(path, (now, now))
    assert nothing_to_do(project)
    run(project, "dvc", "commit", "--force")  # DVC would bless them
    assert "up to date" in run(project, "dvc", "status").stdout
    said = refused(project, "record")
    assert f"{GROUPS} was made with experts: 0.5, and params.yaml asks for 0.25" in said
    assert f"{GROUPS} was made with experts: 0.5" in refused(project, "audit")


def test_swapped_values(project):
    change(project, "samples: 8, length: 32", "samples: 32, length: 8")
    assert "jobs are pending (" in refused(project, "record")
    run(project, "snakemake", "--touch", "--forceall")  # the notes now say so, and the artifacts do not
    assert nothing_to_do(project)
    said = refused(project, "record")
    assert "tokens.safetensors was made with length: 32, and params.yaml asks for 8; samples: 8, and" in said


FLIPPED = [
    GROUPS,
    "results/capture/tiny/mixed/layer_001.h5",
    "results/solve/tiny/mixed/half/mergemoe/layer_001.safetensors",
    "results/models/tiny/mixed/half/mergemoe/model.safetensors",
    "results/report/index.html",
    "results/cards/tiny/mixed/half/average.md",
    "results/errors.csv",
]


@pytest.mark.parametrize("paths", [FLIPPED[:1], FLIPPED[1:]], ids=["one", "each of the others"])
def test_a_bit_flip_with_size_and_time_kept_and_a_warm_dvc_state(project, paths):
    assert "up to date" in run(project, "dvc", "status").stdout  # which fills the state
    for file in (project / path for path in paths):
        content, status = bytearray(file.read_bytes()), file.stat()
        content[byte_that_counts(file)] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert nothing_to_do(project)
    assert "up to date" in run(project, "dvc", "status").stdout
    recorded, audit = refused(project, "record"), refused(project, "audit")
    assert "not the bytes of dvc.lock" in audit and "verdict: different. The artifacts above fail" in audit
    for path in paths:
        assert path in recorded and path in audit


def byte_that_counts(file):
    """A byte of the payload, and one whose flip leaves a JSON file JSON."""
    if file.suffix == ".json":
        return file.read_bytes().rindex(b'"width": 24') + len('"width": 2')
    if file.suffix != ".h5":
        return file.stat().st_size - 40
    import h5py

    with h5py.File(file) as opened:
        chunk = opened["hidden"].id.get_chunk_info(0)
    return chunk.byte_offset + chunk.size // 2


def test_a_missing_intermediate(project):
    for path in (GROUPS, "results/models/tiny/mixed/half/mergemoe/config.json"):
        (project / path).unlink()
    assert nothing_to_do(project)
    said = refused(project, "record")
    assert f"{GROUPS} is missing" in said and "half/mergemoe/config.json is missing" in said
    run(project, "snakemake", GROUPS)
    assert f"{GROUPS} is missing" not in refused(project, "record")


def test_code_edited_after_the_run(project):
    change(project, "    averaged = ", "    averaged: list = ", "mergemoe/methods/mergemoe.py")
    assert "jobs are pending (" in refused(project, "record")
    run(project, "snakemake", "--touch", "--forceall")
    assert nothing_to_do(project)
    said = refused(project, "record")
    assert "half/mergemoe/layer_001.safetensors was made by other code of the stage solve than there is now" in said
    assert "half/average" not in said


def test_a_comment_after_the_run_changes_no_result(project):
    change(project, "    averaged = ", "    # a remark\n    averaged = ", "mergemoe/methods/mergemoe.py")
    said = run(project, "mergemoe", "audit").stdout
    assert "verdict: identical" in said
    assert "code that was edited since:\n  mergemoe/methods/mergemoe.py" in said


@pytest.mark.parametrize(
    ("path", "other", "says"),
    [
        ("solve/tiny/mixed/half/mergemoe/layer_001.safetensors", "solve/tiny/mixed/half/average", "is a copy of"),
        ("solve/tiny/mixed/half/mergemoe/layer_001.safetensors", "layer_002.safetensors", "is a copy of"),
        ("scores/tiny/mixed/half/average/fidelity.json", "scores/tiny/mixed/half/mergemoe", "is a copy of"),
        ("capture/tiny/mixed/layer_001.h5", "layer_002.h5", "belongs to layer 2, not 1"),
    ],
)
def test_a_file_replaced_by_another_runs(project, path, other, says):
    file = project / "results" / path
    source = file.with_name(other) if "/" not in other else project / "results" / other / file.name
    status = file.stat()
    shutil.copyfile(source, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    said = refused(project, "record")
    assert f"results/{path} {says}" in said or "jobs are pending" in said
    assert f"results/{path} {says}" in refused(project, "audit")


def test_a_file_replaced_by_one_of_an_earlier_revision(project, tmp_path):
    again = shutil.copytree(project, tmp_path / "again")
    run(again, "mergemoe", "restore", "half")
    file = project / GROUPS
    status = file.stat()
    shutil.copyfile(again / GROUPS, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    said = refused(project, "audit")
    assert f"{GROUPS} was made with experts: 0.5, and params.yaml asks for 0.25" in said
    # what was made from the right one says so, too
    assert "half/mergemoe/layer_001.safetensors was made from another results/cluster/tiny/mixed/half/layer_001" in said


def test_a_leftover_of_no_run_is_not_recorded(project):
    stray = project / "results/cluster/tiny/mixed/other/layer_001.json"
    stray.parent.mkdir()
    shutil.copyfile(project / GROUPS, stray)
    assert f"{stray.relative_to(project)} is a copy of {GROUPS}, put in its place" in refused(project, "record")


def test_a_job_refuses_an_input_that_is_another_ones(project):
    shutil.rmtree(project / "results/models/tiny/mixed/half/mergemoe")
    solved = project / "results/solve/tiny/mixed/half"
    shutil.copyfile(solved / "average/layer_001.safetensors", solved / "mergemoe/layer_001.safetensors")
    done = run(project, "snakemake", "results/models/tiny/mixed/half/mergemoe", ok=False)
    assert done.returncode != 0
    assert "mergemoe/layer_001.safetensors is a copy of" in done.stdout + done.stderr
    assert not (project / "results/models/tiny/mixed/half/mergemoe").exists()


def test_a_job_refuses_an_input_of_other_parameters(project):
    file = project / GROUPS
    whole = json.loads(file.read_text())
    made = {k: v for k, v in whole.pop("provenance").items() if k not in {"payload", "seal"}}
    made["params"]["experts"] = 0.75
    store.write_json(file, whole, made)
    done = run(project, "snakemake", "--forcerun", "solve", "--rerun-triggers", "params", ok=False)
    assert done.returncode != 0
    assert f"error: {GROUPS} was made with experts: 0.75, and params.yaml asks for 0.25" in done.stdout + done.stderr


def test_restore_loses_nothing(project):
    change(project, "experts: 0.25", "experts: 0.5")
    assert "tracked files have changes (params.yaml)" in refused(project, "restore", "half")
    run(project, "git", "checkout", "--quiet", "params.yaml")
    (project / "results/cluster/mine.json").write_text("{}")
    assert "files below results/ are not in DVC's cache, such as results/cluster" in refused(project, "restore", "half")
    (project / "results/cluster/mine.json").unlink()
    assert "no such revision" in refused(project, "restore", "nowhere")
    shutil.rmtree(project / ".dvc/cache")
    assert "are not in DVC's cache" in refused(project, "restore", "half")
    assert "experts: 0.25" in (project / "params.yaml").read_text()  # the tree is what it was


def test_a_restore_that_was_interrupted_can_be_done_again(project):
    before = digests.sha256(project / "results")
    run(
        project, "git", "checkout", "--quiet", "half"
    )  # and there it was killed: the artifacts are the other revision's
    run(project, "mergemoe", "restore", "half")
    assert nothing_to_do(project)
    run(project, "git", "checkout", "--quiet", "quarter")
    shutil.rmtree(project / "results/solve")
    run(project, "mergemoe", "restore", "quarter")
    assert digests.sha256(project / "results") == before


def test_a_record_that_fails_changes_nothing(project):
    change(project, "plots:", "# mine\nplots:", "dvc.yaml")  # it would be written anew
    shutil.rmtree(project / ".dvc/cache")
    (project / ".dvc/cache").write_text("no folder")
    before = (project / "dvc.yaml").read_text()
    assert "`dvc commit --force` in" in refused(project, "record")
    assert (project / "dvc.yaml").read_text() == before


def test_a_lock_that_is_not_of_the_bytes_is_seen(project):
    file = project / "results/errors.csv"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match="results/errors.csv has other bytes than DVC remembers"):
        record._check_lock(project)


def test_why_snakemake_cannot_plan_is_told(project):
    change(project, "experts: 0.25", "experts: 0.25x")
    assert "cluster.half" in refused(project, "record") and "0.25x" in refused(project, "record")


@pytest.mark.parametrize("half", ["calibrate/tiny/mixed/tokens.json", "solve/tiny/mixed/half/mergemoe/layer_001.json"])
def test_a_missing_half_of_a_pair(project, half):
    (project / "results" / half).unlink()
    if half.endswith("tokens.json"):
        assert nothing_to_do(project)  # no stage reads it
    assert f"results/{half} is missing" in str(refused_by_the_check(project))


def refused_by_the_check(project):
    claims = commands.ask_ledger(project)["claims"]
    return verify_results.check_results(project, claims)


STEPS = ("dvc checkout", "snakemake --cores 1 --dry-run")


@pytest.mark.parametrize("step", STEPS)
def test_a_restore_that_fails_at_any_step_leaves_all_as_it_was(project, monkeypatch, step):
    before, head = everything(project), run(project, "git", "rev-parse", "HEAD").stdout
    real, failed = commands.run_program, []

    def program(root, *command, **options):
        said = real(root, *command, **options)
        if root == project and " ".join(command).startswith(step) and not failed:
            failed.append(command)
            raise UserError(f"{command[0]} was interrupted")
        return said

    monkeypatch.setattr(commands, "run_program", program)
    with pytest.raises(UserError, match="not restored, and all is as it was: .* was interrupted"):
        restore_revision(project, "half")
    monkeypatch.undo()
    assert failed and everything(project) == before
    assert run(project, "git", "rev-parse", "HEAD").stdout == head
    assert run(project, "git", "branch", "--show-current").stdout == "main\n"
    assert nothing_to_do(project)
    assert not (project / run_guard.RESTORING).exists()
    run(project, "mergemoe", "restore", "half")


def test_restore_and_a_run_keep_out_of_each_others_way(project):
    locks = project / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.input.lock").write_text("results\n")
    assert "a run of Snakemake holds this folder's lock" in refused(project, "restore", "half")
    (locks / "0.input.lock").unlink()
    mark = project / run_guard.RESTORING
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(str(os.getpid()))
    done = run(project, "snakemake", "--forcerun", "report", ok=False)
    assert (
        done.returncode != 0 and "`mergemoe restore` is putting another revision in place" in done.stdout + done.stderr
    )
    mark.write_text("0" + "9" * 9)  # of a process that was killed
    run(project, "snakemake")


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-20] + bytes([path.read_bytes()[-20] ^ 1]) * 20),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("which", ["a file", "the list of a folder"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_ends_an_audit_and_a_restore_of_a_revision_and_changes_nothing(project, damage, which):
    run(project, "git", "checkout", "--quiet", "half")
    (out,) = (entry for entry in dvc_lock.locked_outs(project) if entry.path == "results/cluster")
    run(project, "git", "checkout", "--quiet", "main")
    cache, of_main = (
        project / ".dvc/cache",
        {dvc_lock.dvc_digest(path) for path in project.glob("results/cluster/**/*")},
    )
    members = [md5 for md5 in dvc_lock._members(dvc_lock._object(cache, out.md5)) if md5 not in of_main]
    path = dvc_lock._object(cache, members[0] if which == "a file" else out.md5)
    path.chmod(0o644)
    DAMAGES[damage](path)
    before, head = everything(project), run(project, "git", "rev-parse", "--abbrev-ref", "HEAD").stdout
    for command in ("audit", "restore"):
        said = refused(project, command, "half")
        if damage == "deleted":
            assert "results/cluster: neither in DVC's cache nor in a remote. Run `dvc push` on the machine" in said
        else:
            assert f"Of DVC's cache 1 files are damaged: {path}. No remote has copies of them" in said
            assert "Put back these files from another copy of this project" in said
        assert everything(project) == before and nothing_to_do(project)
        assert run(project, "git", "rev-parse", "--abbrev-ref", "HEAD").stdout == head


def everything(project):
    """The bytes of all that is tracked or recorded."""
    tracked = run(project, "git", "ls-files").stdout.split()
    return {path: digests.sha256(project / path) for path in [*tracked, *verify_results.result_files(project)]}
