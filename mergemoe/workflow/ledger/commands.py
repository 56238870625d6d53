"""Run git, dvc and snakemake as programs, as a user would call them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError
from mergemoe.workflow.ledger import dvc_lock

PYTHON = Path(sys.executable)
LEAST = 1 << 20  # bytes: a disk that has less is full
PATIENCE = 20  # seconds in which others may make room on it


def run_program(root: Path, *command: str, shown: bool = False, python: Path = PYTHON) -> str:
    """Run a program in a project's folder and return what it printed.

    Args:
        root: the folder.
        command: the program and its arguments; dvc and snakemake are those of `python`.
        shown: whether its messages appear while it runs.
        python: the interpreter of dvc, snakemake and their jobs; another than this one gets no PYTHONPATH.

    Raises:
        UserError: if it is not installed, or its exit status is not 0; with the last lines of its output.
    """
    group = 0 if command[0] == "snakemake" else None  # of its own; git and dvc may ask for a password on the terminal
    if command[0] in {"dvc", "snakemake"}:
        command = (str(python), "-m", *command)
    name = " ".join(command[2:] if command[1:2] == ("-m",) else command)
    errors, environment = None if shown else subprocess.PIPE, _environment(python)
    try:
        running = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=errors, process_group=group
        )
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not installed. Install it") from None
    out, said = (text.decode(errors="replace") for text in _outcome(running, name, root))
    if running.returncode != 0:
        last = f"{out}\n{said}".strip().splitlines()[-12:]  # Snakemake says why in either
        if (free := shutil.disk_usage(root).free) < LEAST:  # which a database calls an I/O error
            last.append(f"No space left in {root.resolve()}: {free:,} bytes. Make room, then run it again")
        raise UserError("\n  ".join([f"`{name}` in {root} ended with status {running.returncode}", *last]))
    return out


def _outcome(running: "subprocess.Popen[bytes]", name: str, root: Path) -> tuple[bytes, bytes]:
    """Return the output of a program; end it if the disk is full: DVC's databases wait for room without end."""
    full = 0
    with running:
        while True:
            try:
                out, said = running.communicate(timeout=1)
                return out, said or b""
            except subprocess.TimeoutExpired:
                full = full + 1 if shutil.disk_usage(root).free < LEAST else 0
            except BaseException:
                _kill(running)
                raise
            if full > PATIENCE:
                _kill(running)
                raise UserError(
                    f"No space left in {root.resolve()}, where `{name}` waits. Make room, then run it again"
                )


def _kill(running: "subprocess.Popen[bytes]") -> None:
    """Kill a program, and the jobs of Snakemake with it, which would go on to write."""
    running.kill()
    with suppress(OSError):  # all have ended
        if os.getpgid(running.pid) == running.pid:
            os.killpg(running.pid, signal.SIGKILL)


def _environment(python: Path) -> dict[str, str]:
    """Return the environment in which a workflow's jobs find a Python, whether or not a shell has activated it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or python == PYTHON}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}", "DVC_NO_ANALYTICS": "1"}


def pending_jobs(root: Path) -> dict[str, int]:
    """Return how many jobs of each rule Snakemake would run."""
    said = run_program(root, "snakemake", "--cores", "1", "--dry-run", "--quiet", "rules")
    counts = re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in {"all", "total"}}


def ask_ledger(root: Path) -> dict[str, Any]:
    """Return the expected provenance of every artifact and the text of dvc.yaml, from a project's own code."""
    return json.loads(run_program(root, str(PYTHON), "-m", "stages.ledger"))


def stage_rules(root: Path) -> dict[str, set[str]]:
    """Return the Snakemake rules that each stage of dvc.yaml runs."""
    commands = {name: str(stage.get("cmd")) for name, stage in dvc_lock.declared_stages(root).items()}
    found = {name: re.search(r"--allowed-rules (.+) stage_", command) for name, command in commands.items()}
    return {name: set(match[1].split()) if match else set() for name, match in found.items()}


def unpushed(root: Path) -> set[str]:
    """Return the outputs that dvc.yaml keeps out of pushes."""
    stages = dvc_lock.declared_stages(root).values()
    outs = [out for stage in stages for out in stage.get("outs", []) if isinstance(out, dict)]
    return {path for out in outs for path, options in out.items() if options and options.get("push") is False}


def kept_out(root: Path) -> set[str]:
    """Return the outputs that are missing because of that: a clone knows only their hashes."""
    return {path for path in unpushed(root) if not (root / path).exists()}
