"""A real SLURM on this machine (slurm/cluster.sh), the workflow on it, and faults that befall its jobs once."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from tiny_project import ROOT

SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
LIMITS = {
    "190000": "15000",
    "480000": "15000",
    "1440": "60",
    "max_gpu: 4": "max_gpu: 2",
}  # what its nodes claim to have

# The `python` of a run. Before a module it does what FAULTS/MODULE says, once; the file's new name has its pid.
# Snakemake takes it for the interpreter that it runs in, and starts its jobs with it.
PYTHON = """\
#!/bin/sh
fault="FAULTS/$2"
if [ -f "$fault" ] && mv "$fault" "$fault.$$" 2> /dev/null; then . "$fault.$$"; fi
if [ "$2" = snakemake ]; then
    shift 2
    exec PYTHON -c "import sys; sys.executable = 'FAULTS/bin/python'; from snakemake.cli import main; main()" "$@"
fi
exec PYTHON "$@"
"""
HOLD = "kill -STOP $$"
FILL_DISK = "ulimit -f 1"  # KB: what is larger cannot be written
TAKE_MEMORY = f"{sys.executable} -c 'import time; held = bytearray(3 << 30); time.sleep(60)'"


class Cluster:
    """Its nodes gn1, gn2 (two GPUs each) and cn1, from `start` to `stop`."""

    def __init__(self, port: int):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # short: paths of sockets are
        self.env = {**os.environ, "PORT": str(port)}
        self.start()
        told = subprocess.run([SCRIPT, "env", self.folder], capture_output=True, text=True, check=True).stdout
        self.env["SLURM_CONF"] = re.findall(r"SLURM_CONF=(\S+)", told)[0]
        self.env["PATH"] = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(self) -> None:
        """Start what does not run, and wait until every node is idle."""
        subprocess.run([SCRIPT, "start", self.folder], env=self.env, check=True, timeout=120)

    def stop(self) -> None:
        subprocess.run([SCRIPT, "stop", self.folder], env=self.env, check=True, timeout=120)
        for process, _ in self.processes():  # what a node that was set down has left, without cgroups
            process.kill()
        shutil.rmtree(self.folder)

    def processes(self) -> Iterator[tuple[psutil.Process, str]]:
        """Yield the processes of its jobs, and the jobs' numbers."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                if "SLURM_JOB_ID" in env and str(self.folder) in env["PATH"]:
                    yield process, env["SLURM_JOB_ID"]

    @contextlib.contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Yield a place for the most MB that the processes of each job have resident, looked at twice a second."""
        highest, over = dict[str, float](), threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                now = Counter[str]()
                for process, job in self.processes():
                    with contextlib.suppress(psutil.Error):
                        now[job] += process.memory_info().rss
                for job, held in now.items():
                    highest[job] = max(highest.get(job, 0), held / 1e6)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield highest
        finally:
            over.set()
            watching.join()

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def daemon(self, node: str) -> int:
        return int((self.folder / "run" / f"slurmd.{node}.pid").read_text())


class Project:
    """A copy of the project on a cluster, and one run of its workflow after another."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder, self.faults = cluster, folder, folder / "faults"
        self.faults.mkdir()
        python = self.faults / "bin" / "python"
        python.parent.mkdir()
        python.write_text(PYTHON.replace("PYTHON", sys.executable).replace("FAULTS", str(self.faults)))
        python.chmod(0o755)
        partitions = folder / "profiles" / "slurm" / "partitions.yaml"
        for ours, here in LIMITS.items():
            partitions.write_text(partitions.read_text().replace(ours, here))

    def start(self, *args: str) -> subprocess.Popen[Any]:
        """Start a run; what it says goes to said.log."""
        env = {**self.cluster.env, "HOME": str(self.folder)}
        python = str(self.faults / "bin" / "python")
        command = [python, "-m", "snakemake", "--workflow-profile", "profiles/slurm", "--jobs", "4"]
        command += ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10", *args]
        log = (self.folder / "said.log").open("a")
        return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, preexec_fn=_default_signals)

    def run(self, *args: str) -> int:
        return self.start(*args).wait(timeout=1000)

    def said(self) -> str:
        """Return what Snakemake said, and SLURM in its logs."""
        logs = [self.folder / "said.log", *(self.folder / "logs" / "slurm").rglob("*.log")]
        return "\n".join(log.read_text() for log in logs)

    def fault(self, stage: str, what: str) -> None:
        """Let something befall the next job of a stage, or the next try of it."""
        (self.faults / "new").write_text(what)
        (self.faults / "new").rename(self.faults / f"stages.{stage}")

    def struck(self, stage: str) -> int:
        """Wait until it has, and return the process."""
        found = wait(lambda: list(self.faults.glob(f"stages.{stage}.[0-9]*")), f"a job of {stage}", self.said)
        return int(found[-1].suffix[1:])

    def job(self) -> tuple[str, str]:
        """Return number and node of the one job that runs."""
        number, node = self.cluster.ask("squeue", "-h", "-t", "running", "-o", "%i %N").split()
        return number, node

    def set(self, stage: str, **resources: str) -> None:
        """Ask for other resources for a stage, by the profile."""
        config = self.folder / "profiles" / "slurm" / "config.yaml"
        text, one = config.read_text(), f"  {stage}: {{"
        assert one in text
        more = "".join(f'{name}: "{value}", ' for name, value in resources.items())
        config.write_text(text.replace(one, one + more))

    def unlock(self) -> None:
        """What one does after Snakemake was killed."""
        subprocess.run(
            [sys.executable, "-m", "snakemake", "--unlock"], cwd=self.folder, check=True, capture_output=True
        )

    def let_end(self, process: int) -> None:
        """Let a process go on that is held and alive, as one is of a node that SLURM believes dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def wait(condition: Callable[[], Any], what: str, said: Callable[[], str], seconds: float = 180) -> Any:
    """Wait until a condition holds, and return what it says."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} after {seconds} s: {said()}"
        time.sleep(0.2)
    return found


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
