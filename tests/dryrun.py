"""Dry runs of the Snakefile from a process that has imported snakemake: the import takes more than half of each."""

import multiprocessing
import os
import sys
from pathlib import Path

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["snakemake.cli"])


def dry_run(project: Path, *targets: str) -> tuple[int | None, str]:
    """Return the exit code and what `snakemake --cores 2 --dry-run` said in a copy of the project."""
    said = project / "dry_run.txt"
    process = _fork.Process(target=_run, args=(project, targets, said))
    process.start()
    process.join()
    return process.exitcode, said.read_text()


def _run(project: Path, targets: tuple[str, ...], said: Path) -> None:
    os.environ["HOME"] = str(project)
    os.chdir(project)
    sys.path.insert(0, "")  # as `python -m snakemake` has it
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import snakemake.cli

    snakemake.cli.main(["--cores", "2", "--dry-run", *targets])
