"""Begin and end a run of Snakemake. artifacts/job_cache.py says which accidents this covers.

Each run has a file of its claims in scratch/runs/, named for it alone, while it lasts. A job that does not find that
file belongs to a run that has ended, or was killed and followed by another: it neither deletes nor writes anything.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, job_cache, paths, reading, run_guard, verify
from mergemoe.artifacts.stages import STAGES
from mergemoe.errors import ArtifactError, UserError
from mergemoe.workflow.planning import preflight_texts
from stages.support import expected
from stages.support.graph import Graph

FOLDER = Path("scratch", "runs")
CLOCKS = 60.0  # seconds


def begin_run(graph: Graph, touching: bool, settings: Any) -> None:
    """Forget what no job will ask for, and write the claims to a file that this run's jobs find and check inputs by.

    Args:
        graph: the jobs.
        touching: whether the run only gives files the time of now.
        settings: Snakemake's settings of the DAG, which say what is forced.

    Raises:
        UserError: if the folder is being restored, an artifact is from the future, or a text cannot be read or is too
            short, which only reading tells.
        OSError: if results/ or scratch/ cannot be written.
    """
    if run_guard.being_restored():
        raise UserError(
            "`mergemoe restore` is putting another revision in place here. Wait for its end, then run again"
        )
    if not touching:
        _refuse_the_future()
    claims = expected.every_claim(graph)
    _try_to_write()
    atomic.sweep(paths.RESULTS)
    job_cache.delete_unclaimed(paths.RESULTS, _not_forced(claims, settings))
    _end_run()
    path = FOLDER / f"{uuid.uuid4()}.json"
    with atomic.atomic(path) as file:
        file.write_text(json.dumps(claims), encoding="utf-8")
    os.environ[run_guard.RUN] = str(path)
    preflight_texts.check_texts(graph.params)


def _not_forced(claims: verify.Claims, settings: Any) -> verify.Claims:
    """Return the claims of jobs that may take what another copy of them has finished: none that the user forces."""
    forced = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}

    def is_forced(output: str, stage: str) -> bool:
        names = {stage, output, *STAGES[stage].files(output)}
        return settings.forceall or any(str(name).rstrip("/") in names for name in forced)

    return {output: claim for output, claim in claims.items() if not is_forced(output, claim["stage"])}


def _try_to_write() -> None:
    """Write a file below results/ and delete it: where that fails, Snakemake, which deletes old outputs, says less."""
    probe = Path(paths.RESULTS, ".tmp", f"probe.{os.getpid()}")
    with atomic.atomic(probe) as file:
        file.write_text("Can this folder be written?", encoding="utf-8")
    probe.unlink()


def end_successful_run(graph: Graph) -> None:
    """End the run. If it has made everything, not some targets only, clear the job cache."""
    _end_run()
    if verify.is_current(paths.REPORTED, expected.every_claim(graph)):
        job_cache.delete_all(paths.RESULTS)


def end_failed_run(graph: Graph, failed: Iterable[Any]) -> None:
    """End the run, and delete those outputs of its failed jobs that were there before, made otherwise than claimed.

    With `keep-incomplete`, which the SLURM profile sets, Snakemake keeps what was there before a job that could not
    be submitted, and notes it as made with the parameters of now.
    """
    _end_run()
    claims, known = expected.every_claim(graph), dict[str, str]()
    single = [job for one in failed for job in (one.jobs if one.is_group() else [one])]
    for path in filter(Path.exists, (Path(output) for job in single for output in job.output)):
        try:
            verify.check_input(path, claims, known)
        except ArtifactError:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_if_over() -> None:
    """Check that the run is not over, before Snakemake deletes the outputs that a job begins with deleting.

    Raises:
        UserError: if it is.
    """
    if run_guard.run_is_over():
        raise UserError(run_guard.OVER)


def refuse_another_folder(project: str | Path) -> None:
    """Check that the workflow runs in the project's own folder, whose git and DVC record what it makes.

    Raises:
        UserError: it runs elsewhere, by --directory or by the path of its Snakefile.
    """
    if Path.cwd().resolve() != Path(project).resolve():
        raise UserError(
            f"the workflow of {project} cannot run in {Path.cwd()} (--directory, or -s from another folder): git and "
            "DVC of the project's own folder record the results. For a second study beside the first, run "
            "`git worktree add FOLDER` there, and snakemake in FOLDER; for other parameters, give --configfile"
        )


def refuse_a_link() -> None:
    """Check that the folder of results is no link and holds none: git and DVC take nothing behind one.

    Raises:
        UserError: if it is, or holds one.
    """
    if Path(paths.RESULTS).is_symlink():
        raise UserError(
            f"{paths.RESULTS}/ is a link to {os.readlink(paths.RESULTS)}, and DVC records nothing behind a link. Clone "
            "the project on that disk instead, or mount the disk there"
        )
    for name in (".tmp", ".finished"):
        inner = Path(paths.RESULTS, name)
        if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
            raise UserError(
                f"{inner} is {reading.kind_of(inner.lstat().st_mode)}, and a folder belongs there. Delete it"
            )
    reading.refuse_links(paths.RESULTS)


def _refuse_the_future() -> None:
    """Check that no artifact is from the future: Snakemake would make what depends on it, and then delete that.

    Raises:
        UserError: if one is, by more than the clocks of two machines may differ.
    """
    now = time.time()
    files = (path for path in Path(paths.RESULTS).rglob("[!.]*") if path.is_file())
    latest, path = max(((path.stat().st_mtime, str(path)) for path in files), default=(0.0, ""))
    if latest > now + CLOCKS:
        raise UserError(
            f"{path} is from the future, by {latest - now:,.0f} s: the clock of this machine was set back, or that of "
            "the machine which wrote it is ahead. Set the clocks right. Then `snakemake --cores 1 --touch --forceall` "
            "gives all artifacts the time of now, and `mergemoe record` tells whether they are those of params.yaml"
        )


def _end_run() -> None:
    """End any run of this folder: a job of it that still runs, on a node that was believed dead, writes no more."""
    os.environ.pop(run_guard.RUN, None)
    shutil.rmtree(FOLDER, ignore_errors=True)
