"""Temporary folders of clones: deleted at the end, or by the next one if their process was killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from tiny_project import ROOT

from mergemoe.workflow.ledger import clone

WAITS = """
import time
from mergemoe.workflow.ledger import clone
with clone._temporary_folder() as folder:
    (folder / clone.DEEP).mkdir(parents=True)
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def abandoned(place, name="mergemoe-left"):
    """A folder that a killed process left in `place`."""
    (place / name / clone.DEEP).mkdir(parents=True)
    (place / name / clone.LOCK).touch()
    return place / name


def test_a_folder_is_deleted_after_its_process_was_killed_and_not_before(place):
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WAITS], env=environment, stdout=subprocess.PIPE, text=True) as process:
        folder = process.stdout.readline().strip()
        with clone._temporary_folder() as own:
            assert {str(own), folder} == {str(path) for path in place.iterdir()}
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert os.path.isdir(folder)
            with clone._temporary_folder() as another:
                assert {own, another} == {*place.iterdir()}
    assert not list(place.iterdir())


def test_folders_of_others_stay(place, tmp_path, monkeypatch):
    other = abandoned(tmp_path, "elsewhere")
    (place / "mergemoe-link").symlink_to(other)
    unmarked, host = place / "mergemoe-notes", abandoned(place, "mergemoe-host")
    (host / clone.LOCK).rename(host / "another-host.lock")
    linked = abandoned(place, "mergemoe-linked")
    (linked / clone.LOCK).unlink()
    (linked / clone.LOCK).symlink_to(other / clone.LOCK)
    (unmarked / "a").mkdir(parents=True)
    named = abandoned(place, "notes")
    stays = {place / "mergemoe-link", unmarked, host, linked, named}
    left = abandoned(place)
    with monkeypatch.context() as changed:
        changed.setattr(os, "geteuid", lambda: os.getuid() + 1)
        clone._delete_abandoned(place)
    assert {*place.iterdir()} == {*stays, left}
    clone._delete_abandoned(place)
    assert {*place.iterdir()} == stays and (other / clone.DEEP).is_dir()


def test_links_in_an_abandoned_folder_are_not_followed(place, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/weights").write_text("weights")
    (abandoned(place) / "a/checkpoint").symlink_to(tmp_path / "checkpoint")
    clone._delete_abandoned(place)
    assert not list(place.iterdir()) and (tmp_path / "checkpoint/weights").read_text() == "weights"


def test_a_deletion_that_was_interrupted_goes_on_next_time(place, monkeypatch):
    left, real = abandoned(place), shutil.rmtree
    tree = left / clone.DEEP.parts[0]
    with monkeypatch.context() as changed:  # as if another process wrote there
        changed.setattr(clone.shutil, "rmtree", lambda path, **how: None if path == tree else real(path, **how))
        clone._delete_abandoned(place)
    assert (left / clone.LOCK).exists()
    clone._delete_abandoned(place)
    assert not list(place.iterdir())
