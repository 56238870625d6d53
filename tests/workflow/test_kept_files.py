"""The files that git keeps for the ledger: whatever was cut or edited is refused with the file and the way out."""

import hashlib
import json
import os
import subprocess
import tempfile

import pytest

from mergemoe import environment
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import clone, commands, dvc_lock, kept_files
from mergemoe.workflow.ledger.environments import recorded_environment

MD5 = hashlib.md5(b"x", usedforsecurity=False).hexdigest()
LOCK = f"schema: '2.0'\nstages:\n  layout:\n    cmd: x\n    outs:\n    - path: results/layout\n      md5: {MD5}.dir\n"
COMMAND = "snakemake --allowed-rules convert layout stage_layout"
DVC = f"stages:\n  layout:\n    cmd: {COMMAND}\n    outs:\n      - results/layout\n"
CONFLICT = "<<<<<<< HEAD\n{}=======\n{}>>>>>>> other\n"
PLACE = environment.describe_environment()
STAGE = {"jobs": 1, "seconds": 1.5, "peak_mb": 3, "ran_in": [PLACE]}


def refusal(read, path):
    with pytest.raises(UserError) as refused:
        read()
    assert str(refused.value).startswith(f"{path} ")
    return str(refused.value)


WRONG_LOCKS = {
    "cut in a word": LOCK[:25].encode(),
    "cut in a value": LOCK.replace(f"{MD5}.dir", MD5[:9]).encode(),
    "empty": b"",
    "binary": bytes(range(256)),
    "a number": b"stages: 3\n",
    "a number for a stage": b"stages:\n  evaluate: 3\n",
    "nothing for outs": b"stages:\n  evaluate:\n    outs: null\n",
    "an output without hash": b"stages:\n  evaluate:\n    outs: [{path: x}]\n",
    **{
        f"an output {path}": LOCK.replace("path: results/layout", f"path: {path}").encode()
        for path in ("/etc", "../other", "results/../../other", ".", ".git", ".dvc/config", "''")
    },
    "a stage twice": (LOCK + LOCK.partition("stages:\n")[2]).encode(),
    "a conflict": CONFLICT.format(LOCK, LOCK).encode(),
}


@pytest.mark.parametrize("content", WRONG_LOCKS.values(), ids=WRONG_LOCKS)
def test_a_dvc_lock_that_was_cut_or_edited(tmp_path, content):
    path = tmp_path / "dvc.lock"
    path.write_bytes(content)
    said = refusal(lambda: dvc_lock.read_lock(tmp_path), path)
    assert "cannot be read" in said and "`git checkout dvc.lock` brings it back" in said and len(said) < 900


def test_a_dvc_lock_that_is_no_file(tmp_path):
    (tmp_path / "dvc.lock").mkdir()
    assert "is missing" in refusal(lambda: dvc_lock.read_lock(tmp_path), tmp_path / "dvc.lock")
    (tmp_path / "dvc.lock").rmdir()
    (tmp_path / "dvc.yaml").mkdir()
    assert "is a folder" in refusal(lambda: dvc_lock.declared_stages(tmp_path), tmp_path / "dvc.yaml")


def test_whole_files_are_read(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "dvc.yaml").write_text(DVC + "  mine:\n    foreach: [1, 2]\n    do: {cmd: echo}\n")
    assert [entry.path for entry in dvc_lock.locked_outs(tmp_path)] == ["results/layout"]
    assert commands.stage_rules(tmp_path) == {"layout": {"convert", "layout"}, "mine": set()}
    assert commands.unpushed(tmp_path) == set()


@pytest.mark.parametrize("content", ["", DVC[:20], "stages: []\n", "x: 1\n", CONFLICT.format(DVC, DVC), DVC + DVC])
def test_a_dvc_yaml_that_was_cut_or_edited(tmp_path, content):
    (tmp_path / "dvc.yaml").write_text(content)
    said = refusal(lambda: commands.unpushed(tmp_path), tmp_path / "dvc.yaml")
    assert "`git checkout dvc.yaml` brings it back; or delete it, and `mergemoe record` writes it" in said


WHOLE = json.dumps({"stages": {"layout": STAGE}})
WITHOUT = {key: {**STAGE, "ran_in": [{k: v for k, v in PLACE.items() if k != key}]} for key in PLACE}


@pytest.mark.parametrize(
    "content",
    ["", WHOLE[:-9], "{}", "3", '{"stages": 3}', CONFLICT.format(WHOLE, WHOLE)]
    + [json.dumps({"stages": {"layout": one}}) for one in WITHOUT.values()],
)
def test_a_record_of_environments_that_was_cut_or_edited(tmp_path, content):
    path = tmp_path / recorded_environment.FILE
    path.parent.mkdir()
    path.write_text(WHOLE)
    assert recorded_environment.environment_differences(tmp_path, [PLACE]) == []
    path.write_text(content)
    said = refusal(lambda: recorded_environment.environment_differences(tmp_path, [PLACE]), path)
    assert "`git checkout envs/recorded.json` brings it back" in said


def test_a_cut_line_of_a_log_is_named_and_nothing_is_written(tmp_path):
    log, claims = tmp_path / "logs" / "layout" / "m.log", {"results/layout/m.json": {"stage": "layout"}}
    log.parent.mkdir(parents=True)
    line = environment.MARK + json.dumps({**PLACE, "node": "n", "devices": None, "peak_mb": 1, "seconds": 1.0})
    for cut in (line[:40], line.replace("seconds", "second"), f"{environment.MARK}3"):
        log.write_text(f"a line\n{cut}\n")
        said = refusal(lambda: recorded_environment.renew_recorded(tmp_path, claims), log)
        assert "its job is left out of envs/recorded.json" in said
    assert not (tmp_path / recorded_environment.FILE).exists()
    log.write_text(f"a line\n{line}\n")
    recorded_environment.renew_recorded(tmp_path, claims)
    assert recorded_environment.read_recorded(tmp_path)["layout"]["jobs"] == 1


def test_committed_numbers_with_conflict_markers():
    text = json.dumps({"m": {"full": {"x/acc": 1}, "runs": {}}})
    assert kept_files.parse_kept(text, "metrics.json", kept_files.Metrics, "")["m"]["full"] == {"x/acc": 1}
    for wrong in (CONFLICT.format(text, text), "[]", '{"m": {"full": {}}}', text.replace("1}", '"one"}')):
        said = refusal(lambda text=wrong: kept_files.parse_kept(text, "m.json", kept_files.Metrics, "Fix"), "m.json")
        assert said.endswith("It was cut or edited. Fix")


@pytest.mark.parametrize("content", ["[core]\n    remote = a\n[core]\n    autostage = true\n", "[co", "\xff\xfe"])
def test_settings_of_dvc_that_were_cut_or_edited(tmp_path, content):
    (tmp_path / ".dvc").mkdir()
    path = tmp_path / ".dvc" / "config"
    path.write_bytes(content.encode("latin-1"))
    assert "`git checkout .dvc/config`" in refusal(lambda: clone._configure(tmp_path, tmp_path / "clone"), path)


@pytest.mark.parametrize("up", [1, 3, 50])
def test_a_clone_finds_what_lies_above_the_project_and_leaves_nothing_outside_it(tmp_path, monkeypatch, up):
    project, text, temporary = tmp_path / "a/b/c/project", tmp_path / "a/b/c/text.txt", tmp_path / "temporary"
    for folder in (project / ".dvc", temporary):
        folder.mkdir(parents=True)
    path = {1: "../text.txt", 3: "../../../b/c/text.txt", 50: "../" * 50 + str(text)[1:]}[up]
    text.write_text("a text")
    (project / ".dvc/config").touch()
    (project / "dvc.lock").write_text(LOCK.replace("outs:", f"deps:\n    - path: {path}\n      md5: {MD5}\n    outs:"))
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "--quiet"], ["add", "-A"], ["commit", "--quiet", "-m", "Begin"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    monkeypatch.setattr(clone, "cache_folder", lambda root: root / ".dvc/cache")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if up == 50:
        with pytest.raises(UserError, match="on which layout depends, is too far above"):
            clone.temporary_clone(project, "HEAD").__enter__()
    else:
        with clone.temporary_clone(project, "HEAD") as tree:
            assert (tree / path).read_text() == "a text" and [*temporary.iterdir()] == [tree.parents[10]]
    assert not list(temporary.iterdir())


def test_damaged_files_of_dvcs_cache_are_named(tmp_path):
    folder, cache = tmp_path / "results", tmp_path / "cache"
    folder.mkdir()
    for name in ("one", "other"):
        (folder / name).write_text(name)
    listed = [{"md5": dvc_lock.dvc_digest(folder / name), "relpath": name} for name in ("one", "other")]
    whole = dvc_lock.dvc_digest(folder)
    kept = {one["md5"]: one["relpath"].encode() for one in listed}
    kept |= {whole: json.dumps(listed, sort_keys=True).encode()}
    files = {md5: cache / "files" / "md5" / md5[:2] / md5[2:] for md5 in kept}
    for md5, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept[md5])
    assert dvc_lock.is_cached(cache, whole) and dvc_lock.damaged_objects(cache, whole) == []
    files[listed[1]["md5"]].write_text("0ther")
    assert dvc_lock.damaged_objects(cache, whole) == [files[listed[1]["md5"]]]
    files[whole].write_bytes(kept[whole][:-20])
    assert dvc_lock.lacks_whole_list(cache, whole) and dvc_lock.damaged_objects(cache, whole) == [files[whole]]
    files[whole].unlink()
    assert not dvc_lock.lacks_whole_list(cache, whole) and not dvc_lock.is_cached(cache, whole)


def test_a_pipe_has_no_hash(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    assert dvc_lock.dvc_digest(tmp_path / "pipe") is None
