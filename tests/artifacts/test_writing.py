"""What keeps a file from being written ends in one error with the place and the way out."""

import errno
import os
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from project import ROOT
from snakemake.exceptions import WorkflowError

from mergemoe import cli
from mergemoe.artifacts import atomic
from mergemoe.artifacts.writing import refused_write, writing
from mergemoe.calibration import capture
from mergemoe.calibration.activation_file import Writer
from mergemoe.errors import UserError
from mergemoe.reconstruction import kept_tokens
from mergemoe.workflow.ledger import record
from stages.support import mistakes, runs

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "Make room there"),
        (errno.EFBIG, "Make room there"),
        (errno.EDQUOT, "Make room there"),
        (errno.EROFS, "Make that place writable"),
        (errno.EACCES, "Make that place writable"),
        (errno.EIO, "Make that place writable"),
        (errno.ENAMETOOLONG, "Make that place writable"),
    ],
)
def test_the_place_is_named_with_the_way_out(number, fix, tmp_path):
    path = tmp_path / "results" / "a.json"
    words = rf"{os.strerror(number)}.*, while {path} was written\. {fix}"
    with pytest.raises(UserError, match=words), writing(), atomic.atomic(path):
        raise OSError(number, os.strerror(number))
    assert not any((tmp_path / "results" / ".tmp").iterdir())


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (ValueError("no space for it"), OSError(errno.ENOENT, "gone"), UserError("No space left")):
        with pytest.raises(type(error)) as seen, writing():
            raise error
        assert seen.value is error
    assert refused_write(OSError(errno.EACCES, "Permission denied")) is None  # of reading, for all that is known


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    words = "(?:File exists|Not a directory).*while .*/file/a.json was written"
    with pytest.raises(UserError, match=words), writing(), atomic.atomic(tmp_path / "file" / "a.json"):
        pass


def test_a_name_that_no_file_system_takes_is_named(tmp_path):
    with (
        pytest.raises(UserError, match="(?s)name too long.*while .*nnn was written.*choose another"),
        writing(),
        atomic.atomic(tmp_path / ("n" * 300)) as temporary,
    ):
        temporary.write_text("x")


@pytest.mark.parametrize("lies", ["a file", "a link to nothing"])
def test_a_scratch_folder_whose_place_is_taken_is_named(lies, tmp_path):
    place = tmp_path / "scratch"
    place.write_text("x") if lies == "a file" else place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"while .*scratch/one was written\. Move away what lies there"), writing():
        kept_tokens._rows(4, torch.zeros(1, 2), place / "one")


def test_the_command_line_and_the_snakefile_show_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mergemoe", "table"])
    monkeypatch.setattr("mergemoe.report.metrics.read_metrics", lambda _: (_ for _ in ()).throw(FULL))
    with pytest.raises(SystemExit, match=r"^error: .*No space left on device\. Make room there"):
        cli.main()
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(WorkflowError, match=r"Not a directory|File exists") as error, mistakes.plain_errors():
        runs._try_to_write()
    assert "while results/.tmp/probe" in str(error.value)


def test_a_reader_that_has_enough_ends_a_command_without_a_word(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mergemoe.cli", "plan"]
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(command, cwd=ROOT, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size", [0, 1000, 6000])
def test_an_activation_file_without_room_ends_in_one_line(size, tmp_path, capfd):
    rows = {"hidden": torch.randn(4000, 8), "expert_index": torch.randint(0, 8, (4000, 2), dtype=torch.int16)}
    path, before = tmp_path / "layer_000.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = "File too large, while .*layer_000.h5 was written"
    try:
        with pytest.raises(UserError, match=words), writing(), capture._layer_file(path, torch.zeros(2), {}) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            file.append(**rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    del file
    assert capfd.readouterr().err == ""
    assert not any(tmp_path.iterdir())


def test_a_disk_that_is_full_for_a_moment_loses_no_rows(tmp_path):
    """h5py swallows the error of a dataset that it writes when the last name of it is gone."""
    names = ("hidden", "expert_index", "expert_weight", "router_logits", "sequence")
    rows = {name: torch.randint(0, 1 << 30, (4000, 8), dtype=torch.int32) for name in names}
    writer, before = Writer(tmp_path / "layer_000.h5", torch.zeros(1)), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        writer.append(**rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert set(writer.datasets) == set(names)
    writer.append(**rows)
    writer.close({"layer": 0})
    with h5py.File(tmp_path / "layer_000.h5") as file:
        for name, part in rows.items():
            assert (file[name][:] == np.tile(part.numpy(), (2, 1))).all()


def test_a_record_that_fails_puts_its_files_back_without_room(tmp_path, monkeypatch):
    old, new = tmp_path / "dvc.lock", tmp_path / "dvc.yaml"
    old.write_text("old")
    with pytest.raises(OSError, match="No space"), record._kept_on_failure(old, new):
        old.write_text("")
        new.write_text("half")
        monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FULL))
        raise FULL
    monkeypatch.undo()
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.lock"]
