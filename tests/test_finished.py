"""What a job made outlives Snakemake's deleting it, and two copies of a job do each other no harm."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mergemoe import finished as kept
from mergemoe import store
from stages import common

MADE = {"stage": "solve", "path": "results/a.safetensors", "params": {"ridge": 0.0}, "inputs": {}, "code": "c"}


@pytest.fixture
def outs(tmp_path):
    """A pair of artifacts, as solve writes them."""
    out = tmp_path / "results" / "a.safetensors"
    store.write_tensors(out, {"w": torch.arange(4.0)}, MADE)
    store.write_json(out.with_suffix(".json"), {"layer": 1}, MADE)
    return [out, out.with_suffix(".json")]


def test_what_was_deleted_comes_back_as_the_same_files(outs):
    kept.keep(outs, MADE)
    inodes = [path.stat().st_ino for path in outs]
    for path in outs:
        path.unlink()
    assert kept.take(outs, MADE)
    assert [path.stat().st_ino for path in outs] == inodes


@pytest.mark.parametrize("key, value", [("params", {"ridge": 1.0}), ("code", "d"), ("inputs", {"x": "y"})])
def test_a_job_of_other_parameters_code_or_inputs_takes_nothing(outs, key, value):
    kept.keep(outs, MADE)
    assert not kept.take(outs, MADE | {key: value})


def test_half_of_a_pair_is_not_finished_and_a_flipped_bit_is_found(outs):
    kept.keep(outs, MADE)
    place = outs[0].parent / ".finished" / store.digest_json(MADE)
    (place / outs[1].name).unlink()
    assert not kept.take(outs, MADE)
    os.link(outs[1], place / outs[1].name)
    assert kept.take(outs, MADE)
    content = bytearray(outs[0].read_bytes())
    content[-2] ^= 1
    with outs[0].open("r+b") as file:  # the same file under both names
        file.write(content)
    assert not kept.is_whole(outs[0], MADE)
    assert not kept.take(outs, MADE)


def test_a_run_that_ended_well_forgets_it_and_what_is_half_written(outs):
    kept.keep(outs, MADE)
    left = outs[0].parent / ".tmp" / "a.safetensors.gn7.123"
    left.write_text("half")
    kept.clear(outs[0].parent)
    assert not left.exists()
    assert not kept.take(outs, MADE)


def test_a_folder_is_whole_where_every_file_is_what_is_listed(finished, tmp_path):
    folder = shutil.copytree(finished / "results/models/tiny/mixed/half/mergemoe", tmp_path / "results" / "model")
    made = store.read_json(folder / "provenance.json")["provenance"]
    del made["payload"], made["seal"]
    assert kept.is_whole(folder, made)
    assert not kept.is_whole(folder, made | {"code": "other"})
    captured = finished / "results" / "capture" / "tiny" / "mixed"
    assert not kept.is_whole(captured, made)
    (folder / "config.json").write_text("{}")
    assert not kept.is_whole(folder, made)


def stage(outs, work, monkeypatch, **options):
    monkeypatch.setattr(sys, "argv", ["stage", "--cfg", '{"ridge": 0.0}', "--code", "c", "--out", str(outs[0])])
    common.stage("solve", "", pair=True, **options)(work)()


def fails(args: argparse.Namespace) -> None:
    raise OSError("scratch is gone")


def test_a_stage_does_not_work_again_for_what_is_finished(outs, monkeypatch):
    kept.keep(outs, MADE)
    outs[0].unlink()
    stage(outs, fails, monkeypatch)
    assert kept.is_whole(outs[0], MADE)
    with pytest.raises(OSError, match="scratch is gone"):
        kept.clear(outs[0].parent)
        outs[0].unlink()
        stage(outs, fails, monkeypatch)


def test_a_stage_that_fails_where_another_copy_has_finished_ends_well(outs, monkeypatch, capsys):
    stage(outs, fails, monkeypatch)
    assert "another copy of this job has finished it" in capsys.readouterr().err
    kept.clear(outs[0].parent)
    outs[1].unlink()
    with pytest.raises(OSError, match="scratch is gone"):
        stage(outs, fails, monkeypatch)


def test_a_stage_that_reads_more_than_it_says_always_works(outs, monkeypatch):
    kept.keep(outs, MADE)
    with pytest.raises(OSError, match="scratch is gone"):
        stage(outs, fails, monkeypatch, hashed=False)


def test_of_two_copies_that_write_a_folder_both_end_well_and_one_stays(tmp_path):
    out = tmp_path / "results" / "models" / "one"
    program = "import sys; from mergemoe import store\n"
    program += "with store.atomic(sys.argv[1]) as folder:\n"
    program += "    folder.mkdir(); (folder / 'a').write_text('x'); (folder / 'b').write_text('y'); input()"
    copies = [
        subprocess.Popen([sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ends = [copy.communicate("\n") and copy.returncode for copy in copies]
    assert ends == [0] * 4
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert list((tmp_path / "results" / ".tmp").iterdir()) == []
