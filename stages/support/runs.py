"""A run of Snakemake and its jobs: each has a file of its claims in scratch/runs/, named for it alone, while it lasts.

A job that does not find that file is of a run that is over, or was killed and followed by another. It neither deletes
nor writes (run_guard.run_is_over).
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, run_guard, verify
from mergemoe.errors import ArtifactError, UserError
from stages.support import expected
from stages.support.graph import Graph

FOLDER = Path("scratch", "runs")


def begin(g: Graph) -> None:
    """Write the claims where this run's jobs find them, which refuse an input that was made otherwise."""
    end()
    path = FOLDER / f"{uuid.uuid4()}.json"
    with atomic.atomic(path) as file:
        file.write_text(json.dumps(expected.claims(g)))
    os.environ[run_guard.RUN] = str(path)


def end() -> None:
    """End the run, whichever it was: a job of it that still runs, of a node that was believed dead, writes no more."""
    os.environ.pop(run_guard.RUN, None)
    shutil.rmtree(FOLDER, ignore_errors=True)


def forget(g: Graph, failed: Iterable[Any]) -> None:
    """Delete of the outputs of Snakemake's failed jobs what was there before, made otherwise than the claims say.

    With `keep-incomplete`, which the SLURM profile sets, Snakemake keeps what was there before a job that could not
    be submitted, and notes it as made with the parameters of now.
    """
    told, known = expected.claims(g), dict[str, str]()
    single = [job for one in failed for job in (one.jobs if one.is_group() else [one])]
    for path in filter(Path.exists, (Path(output) for job in single for output in job.output)):
        try:
            verify.check_input(path, told, known)
        except ArtifactError:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check() -> None:
    """Check that the run is not over, before Snakemake deletes what a job begins with deleting.

    Raises:
        UserError: where it is.
    """
    if run_guard.run_is_over():
        raise UserError(run_guard.OVER)
