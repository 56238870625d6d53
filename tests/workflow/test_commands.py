"""Programs that the ledger runs: what they print, how they fail, and that none waits forever for room."""

import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands

WAITS = (sys.executable, "-c", "import time; time.sleep(60)")
PRINTS = "import sys; sys.stdout.buffer.write(b'one \\xff\\n' * 100_000); sys.stderr.write('why\\n'); sys.exit({})"


def test_what_a_program_prints_is_returned_whatever_its_bytes(tmp_path):
    assert commands.run_program(tmp_path, sys.executable, "-c", PRINTS.format(0)) == "one \ufffd\n" * 100_000


def test_a_program_that_fails_is_told_with_its_last_lines(tmp_path):
    with pytest.raises(UserError, match=r"(?s)ended with status 3\n.*\n  why$") as error:
        commands.run_program(tmp_path, sys.executable, "-c", PRINTS.format(3))
    assert len(str(error.value).splitlines()) == 13
    with pytest.raises(UserError, match="`nothing-here` is not installed"):
        commands.run_program(tmp_path, "nothing-here")


def test_a_program_that_fails_without_room_says_so_whatever_it_calls_that(tmp_path, monkeypatch):
    monkeypatch.setattr(commands.shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(
        UserError, match=rf"\n  why\n  No space left in {tmp_path}: 4,096 bytes. Make room, then run it"
    ):
        commands.run_program(tmp_path, sys.executable, "-c", PRINTS.format(255))


def test_a_program_that_waits_for_room_on_a_full_disk_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "PATIENCE", 1)
    monkeypatch.setattr(commands.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    began = time.monotonic()
    with pytest.raises(UserError, match=f"No space left in {tmp_path}, where `.*time.sleep"):
        commands.run_program(tmp_path, *WAITS)
    assert time.monotonic() - began < 30


def test_a_program_may_go_on_if_there_is_room_again(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "PATIENCE", 1)
    free = iter([0, 1 << 30, 0, 1 << 30, 0, 1 << 30, *[1 << 30] * 60])
    monkeypatch.setattr(commands.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    assert commands.run_program(tmp_path, sys.executable, "-c", "import time; time.sleep(5); print('done')") == "done\n"


def test_the_jobs_of_a_snakemake_that_is_killed_end_with_it(tmp_path, monkeypatch):
    (tmp_path / "snakemake.py").write_text(
        "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True, file=open('job', 'w'))\n"
        "import time; time.sleep(60)\n"
    )
    monkeypatch.setattr(commands.subprocess.Popen, "communicate", interrupted_when(tmp_path / "job"))
    with pytest.raises(KeyboardInterrupt):
        commands.run_program(tmp_path, "snakemake")
    job = psutil.Process(int((tmp_path / "job").read_text()))
    ends = time.monotonic() + 5
    while job.is_running() and job.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends
        time.sleep(0.05)


def interrupted_when(file):
    """Return a `communicate` that Ctrl-C interrupts as soon as a file has content."""

    def communicate(running, timeout):
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        raise KeyboardInterrupt

    return communicate
