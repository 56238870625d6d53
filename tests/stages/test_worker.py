"""What a job meets in a worker is what it meets in an interpreter of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergemoe.errors import UserError
from stages.support import worker

JOBS = {
    "numbers": "import sys\nprint('wave' in sys.modules, *sys.argv[1:], __name__)\n",
    "place": "import os, sys\nprint(os.getcwd(), sys.path[0], os.environ['TOLD'], sys.stdin.read())\n",
    "child": "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'job_numbers', 'from a child'])\n",
    "three": "import sys\nsys.exit(3)\n",
    "words": "import sys\nsys.exit('error: no such thing')\n",
    "raises": "raise ValueError('seen')\n",
    "killed": "import os\nos.kill(os.getpid(), 9)\n",
    "sleeps": "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n",
    "file": "open('large', 'wb').write(bytes(100_000))\n",
    "threads": "import sys, torch\nprint(torch.get_num_threads(), 'stages' in sys.modules)\n",
}


@pytest.fixture(scope="module")
def python():
    """The `python` of a worker that has imported `wave`, which nothing else here imports."""
    folder = worker.start(["wave", "torch"], ["job_"])
    started = worker._started[-1]
    yield str(folder / "python")
    started.stdin.close()
    started.wait(10)
    assert not folder.exists()


@pytest.fixture
def ask(python, tmp_path):
    for name, text in JOBS.items():
        (tmp_path / f"job_{name}.py").write_text(text, encoding="utf-8")

    def run(name, *arguments, python=python, **options):
        command = [python, "-m", f"job_{name}", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **options)

    return run


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


def test_a_job_is_a_fork_that_finds_the_libraries_imported(ask):
    assert ask("numbers", "one", "two words", "*").stdout == "True one two words * __main__\n"
    assert ask("numbers", python=sys.executable).stdout == "False __main__\n"


def test_a_job_has_the_folder_the_variables_and_the_input_of_who_asks(ask, tmp_path):
    here = {**os.environ, "TOLD": "ä"}
    here.pop("TMPDIR", None)
    done = ask("place", env=here, input="read")
    assert done.stdout == f"{tmp_path} {tmp_path} ä read\n"


def test_what_a_job_starts_runs_in_the_worker_too(ask):
    assert ask("child").stdout == "True from a child __main__\n"


def test_a_job_imports_the_packages_of_the_project_anew(ask):
    assert ask("threads").stdout == "1 False\n"


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("three", 3, ""),
        ("words", 1, "error: no such thing\n"),
        ("raises", 1, "ValueError: seen\n"),
        ("killed", 128 + 9, ""),
        ("nothing", 1, "No module named job_nothing\n"),
    ],
)
def test_the_status_and_the_message_of_a_job_are_those_of_an_interpreter(ask, name, status, said):
    done = ask(name)
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert ask("numbers").returncode == 0


def test_a_limit_on_file_sizes_holds_in_the_worker(ask, python, tmp_path):
    command = ["bash", "-c", 'ulimit -f 1; exec "$0" -m job_file', python]
    limited = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "File too large" in limited.stderr
    assert ask("file").returncode == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_ends_with_who_asked_for_it(ask, python, tmp_path, how):
    command = [python, "-m", "job_sleeps"]
    asking = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pid = int(asking.stdout.readline())
    assert is_running(pid)
    asking.send_signal(how)
    wait_until(lambda: not is_running(pid))
    asking.communicate()


def test_anything_else_is_for_the_interpreter(python, tmp_path):
    command = [python, "-c", "import sys; print(sys.executable, 'wave' in sys.modules)"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == f"{sys.executable} False\n"


def test_nobody_else_can_ask(python):
    assert Path(python).parent.stat().st_mode & 0o777 == 0o700


def test_a_job_runs_in_a_new_interpreter_if_the_worker_has_ended(ask):
    folder = worker.start([], ["job_"])
    worker._started[-1].kill()
    worker._started[-1].wait()
    done = ask("numbers", "after all", python=str(folder / "python"))
    assert done.stdout == "False after all __main__\n"
    shutil.rmtree(folder)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    code = "from stages.support import worker; import sys; print(worker.start([], ['job_']), worker._started[0].pid)"
    owner = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdout.flush(); sys.stdin.read()"],
        cwd=worker.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder, pid = owner.stdout.readline().split()
    assert is_running(pid)
    owner.kill()
    wait_until(lambda: not is_running(pid) and not Path(folder).exists())
    owner.communicate()


def test_a_worker_is_started_only_for_who_asks(monkeypatch):
    before = os.environ["PATH"]
    for value in ("yes", "2"):
        monkeypatch.setenv(worker.ASKED, value)
        with pytest.raises(UserError, match=f"MERGEMOE_WORKER is '{value}'"):
            worker.start_if_asked()
    for value in ("", "0"):
        monkeypatch.setenv(worker.ASKED, value)
        worker.start_if_asked()
    monkeypatch.delenv(worker.ASKED)
    worker.start_if_asked()
    assert os.environ["PATH"] == before


def test_a_folder_for_temporary_files_that_will_not_do_is_named(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(worker.tempfile, "tempdir", str(long))
    with pytest.raises(UserError, match=r"no worker can be started in .*x: AF_UNIX path too long. Set TMPDIR"):
        worker.start([], ["job_"])
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(worker.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"started in {tmp_path}: nothing there can be executed"):
        worker.start([], ["job_"])
    assert not list(long.iterdir()) and not list(tmp_path.glob("mergemoe_worker_*"))
