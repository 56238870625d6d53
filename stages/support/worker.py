"""Run the jobs of one machine in forks of a process that has imported torch once, if MERGEMOE_WORKER is 1.

A job on one layer of a small model imports for seconds and computes for less. What runs is the same code in a process
of its own, so the bytes are the same, too (tests/e2e/test_worker.py).
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

from mergemoe.errors import UserError

ASKED = "MERGEMOE_WORKER"
LIBRARIES = ("torch", "h5py", "safetensors.torch")
ROOT = Path(__file__).resolve().parent.parent.parent
OWN = ("stages", "mergemoe")  # packages that each job imports from its own folder


def start_if_asked() -> None:
    """Start a worker for the stages if the user asks for one, and put its `python` first on PATH.

    Raises:
        UserError: if the variable that asks is neither 0 nor 1, or as `start`.
    """
    asked = os.environ.get(ASKED) or "0"
    if asked not in ("0", "1"):
        raise UserError(f"{ASKED} is {asked!r}. Set it to 1, for one worker that runs all jobs, or to 0")
    if asked == "1":
        os.environ["PATH"] = f"{start(LIBRARIES, ['stages.'])}{os.pathsep}{os.environ['PATH']}"


def start(libraries: Iterable[str], served: Iterable[str]) -> Path:
    """Start a worker that ends with this process.

    Args:
        libraries: modules that it imports before the first job.
        served: what the names of modules begin with that run in it.

    Returns:
        the folder of its `python`, which runs `-m MODULE` in a fork of the worker, and anything else by itself.

    Raises:
        UserError: if the folder for temporary files will not do.
    """
    folder = Path(tempfile.mkdtemp(prefix="mergemoe_worker_"))  # of mode 700, so that nobody else can ask the worker
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            _write_python(folder, served)
            listening.bind(str(folder / "worker"))
        except OSError as error:
            shutil.rmtree(folder)
            raise UserError(
                f"no worker can be started in {folder.parent}: {error}. Set TMPDIR to another folder, or {ASKED} to 0"
            ) from None
        listening.listen(128)  # jobs that come while it imports wait
        passed = listening.fileno()
        command = [sys.executable, "-m", "stages.support.worker", str(folder), str(passed), *libraries]
        # Its input ends with this process, and then it ends. In a session of its own, an interrupt from the keyboard
        # reaches the clients alone, and the worker kills their jobs.
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, pass_fds=[passed], start_new_session=True)
    _started.append(worker)
    return folder


def _write_python(folder: Path, served: Iterable[str]) -> None:
    """Write the `python` of a worker's folder.

    Raises:
        OSError: if the folder cannot be written, or nothing there can be executed.
    """
    client = [sys.executable, "-IS", str(ROOT / "stages" / "support" / "ask_worker.py")]
    client += [str(folder / "worker"), sys.executable, ",".join(served)]
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
    python.chmod(0o700)
    if not os.access(python, os.X_OK):
        raise OSError("nothing there can be executed")


_started: list[subprocess.Popen[bytes]] = []  # keeps their inputs open


def serve(folder: Path, listening: socket.socket, libraries: Iterable[str]) -> None:
    """Import what is slow, then run what clients ask for until this process's input ends."""
    for name in libraries:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a job that collects garbage need not look at all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a supervisor
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _supervise(connection, str(folder / "python"))
        connection.close()
    shutil.rmtree(folder, ignore_errors=True)


def _supervise(connection: socket.socket, python: str) -> None:
    """Run one job in a fork and answer with its exit status; kill it if the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    if not files:  # the client is gone already
        os._exit(0)
    request = bytearray()
    while len(request) < int.from_bytes(length, "big") and (more := connection.recv(65536)):
        request += more
    ended, alive = os.pipe()  # the job alone holds its end `alive`
    job = os.fork()
    if job == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.executable = python  # so that what the job starts runs here, too
        os._exit(_run(**json.loads(request)))
    os.close(alive)
    for file in files:
        os.close(file)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(job, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    connection.sendall(bytes([status if status >= 0 else 128 - status]))  # of a signal, as a shell has it
    os._exit(0)


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: str, file_size: list[int]) -> int:
    """Run a module as `python -m` does and return its exit status."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size[0], file_size[1]))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv = [module, *arguments]
    status: object = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as asked:
        status = asked.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 0 if status is None else 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
