"""A `python` whose stages, `-m snakemake` and `-m mergemoe.cli` run in forks of a process that has torch imported.

A job of the tiny workflow computes for a tenth of a second and imports for three to nine. What runs is the same code,
in a process of its own; that it gives the same bytes as a fresh interpreter is a test (test_workflow.py). Anything else
that is asked of this `python` goes to the real one.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

IMPORTED = (
    "torch",
    "h5py",
    "safetensors.torch",
    "lm_eval",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "snakemake.cli",
    "dvc.cli.parser",
    "dvc.repo",
    "pydantic",
    "jinja2",
    "plotly.graph_objects",
)

# Asks the server at SERVER to run it, with this process's arguments, environment, folder and open files; dies with it.
CLIENT = """\
#!PYTHON -IS
import json, os, resource, socket, sys

module = sys.argv[2] if sys.argv[1:2] == ["-m"] else ""
if module not in ("snakemake", "dvc", "mergemoe.cli") and not module.startswith("stages."):
    os.execv("PYTHON", ["PYTHON", *sys.argv[1:]])
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
asked = {"module": module, "argv": sys.argv[3:], "env": dict(os.environ), "cwd": os.getcwd(), "file_size": limit}
asked = json.dumps(asked).encode()
server = socket.socket(socket.AF_UNIX)
server.connect("SERVER")
socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
server.sendall(asked)
status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


@functools.cache
def python() -> str:
    """Start the server of this process and return the path of the `python` that it serves."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    address, client = folder / "server", folder / "python"
    server = subprocess.Popen(
        [sys.executable, __file__, str(address)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    atexit.register(server.terminate)
    client.write_text(CLIENT.replace("PYTHON", sys.executable).replace("SERVER", str(address)))
    engine = folder / "snakemake"  # which the commands of dvc.yaml call
    engine.write_text(f'#!/bin/sh\nexec {client} -m snakemake "$@"\n')
    for file in (client, engine):
        file.chmod(0o700)
    with server.stdout as answer:
        assert answer.readline(), "the server of warm processes has died; its messages stand above"
    return str(client)


def serve(address: str) -> None:
    """Import what is slow, then run what clients ask for, for ever."""
    import stages  # noqa: F401  # thread counts and MKL's code path, before torch is imported

    for name in IMPORTED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in {"stages", "mergemoe"}]:
        del sys.modules[name]  # a job imports those of its own folder
    gc.collect()
    gc.freeze()  # a job that collects garbage need not look at all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a supervisor
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("ready", flush=True)
    os.dup2(2, 1)
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            supervise(connection)
        connection.close()


def supervise(connection: socket.socket) -> None:
    """Run one job in a fork and answer with its exit status; kill it where the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    asked = bytearray()
    while len(asked) < int.from_bytes(length, "big"):
        asked += connection.recv(65536)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os._exit(job(**json.loads(asked)))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(bytes([status % 256]))
    os._exit(0)


def job(module: str, argv: list[str], env: dict[str, str], cwd: str, file_size: tuple[int, int]) -> int:
    """Run a module as `python -m` does and return its exit status."""
    resource.setrlimit(resource.RLIMIT_FSIZE, file_size)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = ""
    sys.executable = str(Path(sys.argv[1]).with_name("python"))  # what it starts is warm, too
    sys.argv = [module, *argv]
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
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent.parent))
    serve(sys.argv[1])
