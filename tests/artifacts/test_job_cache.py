"""What a job made outlives Snakemake's deleting it, and two copies of a job do each other no harm."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_project import snakemake

from mergemoe.artifacts import atomic, digests, job_cache, run_guard, store
from mergemoe.errors import UserError
from stages.support import command

MADE = {"stage": "solve", "path": "results/a.safetensors", "params": {"ridge": 0.0}, "inputs": {}, "code": "c"}


@pytest.fixture
def outs(tmp_path):
    """A pair of artifacts, as solve writes them."""
    out = tmp_path / "results" / "a.safetensors"
    store.write_tensors(out, {"w": torch.arange(4.0)}, MADE)
    store.write_json(out.with_suffix(".json"), {"layer": 1}, MADE)
    return [out, out.with_suffix(".json")]


def test_what_was_deleted_comes_back_as_the_same_files(outs):
    job_cache.keep_outputs(outs, MADE)
    inodes = [path.stat().st_ino for path in outs]
    for path in outs:
        path.unlink()
    assert job_cache.restore_outputs(outs, MADE)
    assert [path.stat().st_ino for path in outs] == inodes


@pytest.mark.parametrize(
    "key, value", [("params", {"ridge": 1.0}), ("code", "d"), ("inputs", {"x": "y"}), ("path", "results/b")]
)
def test_a_job_of_other_parameters_code_or_inputs_takes_nothing(outs, key, value):
    job_cache.keep_outputs(outs, MADE)
    assert not job_cache.restore_outputs(outs, MADE | {key: value})
    assert job_cache.is_whole(outs[0], MADE) and not job_cache.is_whole(outs[0], MADE | {key: value})


def test_half_of_a_pair_is_not_finished_and_a_flipped_bit_is_found(outs):
    job_cache.keep_outputs(outs, MADE)
    place = outs[0].parent / ".finished" / digests.digest_json(MADE)
    (place / outs[1].name).unlink()
    assert not job_cache.restore_outputs(outs, MADE)
    os.link(outs[1], place / outs[1].name)
    assert job_cache.restore_outputs(outs, MADE)
    content = bytearray(outs[0].read_bytes())
    content[-2] ^= 1
    with outs[0].open("r+b") as file:  # the same file under both names
        file.write(content)
    assert not job_cache.is_whole(outs[0], MADE)
    assert not job_cache.restore_outputs(outs, MADE)


def test_a_folder_counts_only_with_all_of_its_files(tmp_path):
    made = MADE | {"path": "results/one"}
    out = tmp_path / "results" / "one"
    for layer in (1, 2):
        store.write_json(out / f"layer_{layer}.json", {"layer": layer}, made)
    job_cache.keep_outputs([out], made)
    (out.parent / ".finished" / digests.digest_json(made) / "one" / "layer_2.json").unlink()
    assert not job_cache.restore_outputs([out], made)
    job_cache.keep_outputs([out], made)
    assert job_cache.restore_outputs([out], made)


def test_a_folder_with_files_in_folders_is_kept_and_whole(tmp_path):
    made = MADE | {"path": "results/one/provenance.json"}
    out = tmp_path / "results" / "one"
    (out / "templates").mkdir(parents=True)
    (out / "templates" / "rag.jinja").write_text("{{ messages }}")
    store.write_json(out / "provenance.json", {"files": digests.sha256_each(out)}, made)
    assert job_cache.is_whole(out, made)
    job_cache.keep_outputs([out], made)
    shutil.rmtree(out)
    assert job_cache.restore_outputs([out], made) and (out / "templates" / "rag.jinja").is_file()
    (out / "templates" / "rag.jinja").write_text("other")
    assert not job_cache.is_whole(out, made)


def test_where_links_cannot_be_made_nothing_is_kept_and_the_log_says_so(outs, monkeypatch, capsys):
    def link(*names):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    job_cache.keep_outputs(outs, MADE)
    assert not job_cache.restore_outputs(outs, MADE)
    assert "no links here" in capsys.readouterr().err


def test_a_run_that_ended_well_forgets_it_and_what_is_half_written(outs):
    job_cache.keep_outputs(outs, MADE)
    left = outs[0].parent / ".tmp" / "a.safetensors.gn7.123"
    left.write_text("half")
    job_cache.delete_all(outs[0].parent)
    assert not left.exists()
    assert not job_cache.restore_outputs(outs, MADE)


def test_what_params_yaml_no_longer_asks_for_is_forgotten_when_a_run_begins(outs):
    claim = {key: MADE[key] for key in ("stage", "params", "code")}
    job_cache.keep_outputs(outs, MADE)
    job_cache.delete_unclaimed(outs[0].parent, {MADE["path"]: claim})
    assert job_cache.restore_outputs(outs, MADE)
    job_cache.delete_unclaimed(outs[0].parent, {MADE["path"]: claim | {"params": {"ridge": 1.0}}})
    assert not job_cache.restore_outputs(outs, MADE)


@pytest.mark.full
@pytest.mark.workflow
def test_a_run_of_some_targets_forgets_nothing_until_all_is_made(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    solved = project / "results/solve/tiny/mixed/half/mergemoe/layer_001.safetensors"
    solved.unlink()
    shutil.rmtree(project / "results/report")
    assert snakemake(project, str(solved.relative_to(project))).returncode == 0
    assert len(list((project / "results/.finished").iterdir())) == 1
    inode = solved.stat().st_ino
    solved.unlink()
    assert snakemake(project, str(solved.relative_to(project))).returncode == 0
    assert solved.stat().st_ino == inode
    assert snakemake(project).returncode == 0
    assert not (project / "results/.finished").exists()


def test_a_folder_is_whole_where_every_file_is_what_is_listed(finished, tmp_path):
    own = "results/models/tiny/mixed/half/mergemoe"
    folder = shutil.copytree(finished / own, tmp_path / own)
    made = store.read_json(folder / "provenance.json")["provenance"]
    del made["payload"], made["seal"]
    assert job_cache.is_whole(folder, made)
    assert not job_cache.is_whole(folder, made | {"code": "other"})
    captured = finished / "results" / "capture" / "tiny" / "mixed"
    assert not job_cache.is_whole(captured, made)
    (folder / "config.json").write_text("{}")
    assert not job_cache.is_whole(folder, made)


def stage(outs, work, monkeypatch, **options):
    monkeypatch.setattr(sys, "argv", ["stage", "--cfg", '{"ridge": 0.0}', "--code", "c", "--out", str(outs[0])])
    command.stage("solve", "", pair=True, **options)(work)()


def fails(args: argparse.Namespace) -> None:
    raise OSError("scratch is gone")


def test_a_stage_does_not_work_again_for_what_is_finished(outs, monkeypatch):
    job_cache.keep_outputs(outs, MADE)
    outs[0].unlink()
    stage(outs, fails, monkeypatch)
    assert job_cache.is_whole(outs[0], MADE)
    with pytest.raises(OSError, match="scratch is gone"):
        job_cache.delete_all(outs[0].parent)
        outs[0].unlink()
        stage(outs, fails, monkeypatch)


def writes_again(outs):
    """Work that, on its way, is overtaken by another copy of the job."""
    contents = [path.read_bytes() for path in outs]
    for path in outs:
        path.unlink()

    def work(args):
        for path, content in zip(outs, contents, strict=True):
            path.write_bytes(content)
            with atomic.atomic(path) as file:
                file.write_bytes(content)

    return work


def in_a_run(tmp_path, monkeypatch):
    claims = tmp_path / "run.json"
    claims.write_text("{}")
    monkeypatch.setenv(run_guard.RUN, str(claims))
    monkeypatch.setattr(command, "claims", lambda: {})
    return claims


def test_a_copy_that_is_overtaken_leaves_what_is_there_and_ends_well_by_hand_alone(outs, tmp_path, monkeypatch):
    stage(outs, writes_again(outs), monkeypatch)
    in_a_run(tmp_path, monkeypatch)
    job_cache.delete_all(outs[0].parent)
    with pytest.raises(UserError, match="another copy of this job has finished it"):
        stage(outs, writes_again(outs), monkeypatch)


def test_what_is_the_same_already_keeps_its_date(outs):
    before = [path.stat() for path in outs]
    store.write_tensors(outs[0], {"w": torch.arange(4.0)}, MADE)
    assert outs[0].stat().st_mtime_ns == before[0].st_mtime_ns
    assert outs[0].stat().st_ino == before[0].st_ino


def test_a_job_whose_run_is_over_writes_nothing(outs, tmp_path, monkeypatch):
    content = outs[1].read_bytes()
    in_a_run(tmp_path, monkeypatch).unlink()
    with pytest.raises(UserError, match="has ended, or was killed"):
        store.write_json(outs[1], {"layer": 2}, MADE)
    assert outs[1].read_bytes() == content


def test_its_snakefile_ends_before_snakemake_deletes_anything(finished, tmp_path, monkeypatch):
    monkeypatch.setenv(run_guard.RUN, str(tmp_path / "gone.json"))
    done = snakemake(finished, "--forceall", "results/layout/tiny.json")
    assert done.returncode == 1
    assert "has ended, or was killed" in done.stderr
    assert (finished / "results/layout/tiny.json").is_file()


def test_a_stage_that_reads_more_than_it_says_always_works(outs, monkeypatch):
    job_cache.keep_outputs(outs, MADE)
    with pytest.raises(OSError, match="scratch is gone"):
        stage(outs, fails, monkeypatch, hashed=False)


def test_of_two_copies_that_write_a_folder_both_end_well_and_one_stays(tmp_path):
    out = tmp_path / "results" / "models" / "one"
    program = "import sys; from mergemoe.artifacts import atomic\n"
    program += "with atomic.atomic(sys.argv[1]) as folder:\n"
    program += "    folder.mkdir(); (folder / 'a').write_text('x'); (folder / 'b').write_text('y'); input()"
    copies = [
        subprocess.Popen([sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ends = [copy.communicate("\n") and copy.returncode for copy in copies]
    assert ends == [0] * 4
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert list((tmp_path / "results" / ".tmp").iterdir()) == []
