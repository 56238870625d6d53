"""Be the `python` of a worker's folder: ask the worker to run a module, or run anything else in a new interpreter.

python -IS stages/support/ask_worker.py WORKER PYTHON SERVED [ARGUMENTS OF PYTHON...]

The module gets this process's arguments, environment, folder and open files, and is killed with it. A worker that has
ended is replaced by PYTHON. SERVED says what the names of modules begin with that the worker runs, with commas between.
This file imports next to nothing, because every job starts with it.
"""

import json
import os
import resource
import socket
import sys


def main(address: str, python: str, served: str, *arguments: str) -> None:
    """Send the request, wait for the exit status, exit with it."""
    worker = socket.socket(socket.AF_UNIX)
    if arguments[:1] != ("-m",) or not arguments[1].startswith(tuple(served.split(","))):
        os.execv(python, [python, *arguments])
    try:
        worker.connect(address)
    except OSError:
        os.execv(python, [python, *arguments])
    request = json.dumps(
        {
            "module": arguments[1],
            "arguments": arguments[2:],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
        }
    ).encode()
    socket.send_fds(worker, [len(request).to_bytes(4, "big")], [0, 1, 2])
    worker.sendall(request)
    status = worker.recv(1)
    sys.exit(status[0] if status else f"error: the worker ended while it ran {arguments[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
