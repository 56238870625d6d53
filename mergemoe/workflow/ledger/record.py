"""Record a finished run in dvc.lock, after every artifact was verified.

DVC records whatever it finds, so the artifacts are checked against params.yaml and their provenance first.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mergemoe.artifacts import atomic, paths
from mergemoe.errors import UserError, remade
from mergemoe.workflow.ledger import commands, dvc_lock, recorded_summaries, verify_results
from mergemoe.workflow.ledger.environments import recorded_environment
from mergemoe.workflow.ledger.verify_results import Fault

SHOWN = 12  # faults that a message lists
STRANGE = "Delete files and links that do not belong there, or restore what was there."


def record_run(root: Path) -> str:
    """Record a finished run in dvc.lock, and the environment of its jobs; return a summary.

    Raises:
        UserError: if jobs are pending, or an artifact does not match its path and params.yaml. Nothing changes then.
    """
    check_project(root)
    _read_kept_files(root)
    with ThreadPoolExecutor() as pool:  # both take seconds, mostly of imports
        asked = pool.submit(commands.ask_ledger, root)
        jobs = commands.pending_jobs(root)
    if jobs:
        listed = ", ".join(f"{rule} {count}" for rule, count in jobs.items())
        raise UserError(f"not recorded: jobs are pending ({listed}). Run `snakemake --cores all` first")
    wanted = asked.result()
    recorded_environment.gather_logs(root, wanted["claims"])  # an error in a log comes before the long checks
    refuse(verify_results.check_results(root, wanted["claims"]), "not recorded")
    environments, summaries = root / recorded_environment.FILE, root / recorded_summaries.FILE
    before, recorded = _text(root / "dvc.lock"), _text(environments)
    with _kept_on_failure(root / "dvc.lock", root / "dvc.yaml", environments, summaries):
        # first, so that a kill leaves no lock beside an older record
        recorded_environment.renew_recorded(root, wanted["claims"])
        if _text(root / "dvc.yaml") != wanted["dvc.yaml"]:
            with atomic.atomic(root / "dvc.yaml") as file:
                file.write_text(wanted["dvc.yaml"], encoding="utf-8")
        dvc_lock.forget_stages(root)
        with ThreadPoolExecutor() as pool:  # DVC reads the same files meanwhile
            summarized = pool.submit(recorded_summaries.write_summaries, root)
            commands.run_program(root, "dvc", "commit", "--force")
            summarized.result()
        _check_lock(root)
    changed = _text(root / "dvc.lock") != before
    if not changed and recorded is not None:
        with atomic.atomic(environments) as file:
            file.write_text(recorded, encoding="utf-8")
    found = verify_results.result_files(root)
    size = sum((root / path).stat().st_size for path in found)
    files = ["dvc.lock", "dvc.yaml", str(recorded_environment.FILE), str(recorded_summaries.FILE), paths.METRICS]
    end = f"`git add -A` and `git commit` keep {', '.join(files)}; `dvc push` the artifacts" if changed else "as before"
    return f"recorded {len(found)} files, {size / 1e6:,.1f} MB: {end}"


def _read_kept_files(root: Path) -> None:
    """Read those of the ledger's files that are there, for what is wrong with them, before anything takes its time."""
    if (root / "dvc.lock").exists():
        dvc_lock.read_lock(root)
    if (root / "dvc.yaml").exists():
        dvc_lock.declared_stages(root)
    recorded_environment.read_recorded(root)
    recorded_summaries.read_summaries(root)


def _check_lock(root: Path) -> None:
    """Check that DVC has read the bytes: it trusts its notes of a file whose size and time did not change."""
    for entry in dvc_lock.locked_outs(root):
        if dvc_lock.dvc_digest(root / entry.path) != entry.md5:
            raise UserError(
                f"not recorded: {entry.path} has other bytes than DVC remembers. A file in it was replaced by one of "
                "the same size and time. `touch` the files in it, then record again"
            )


def check_project(root: Path) -> None:
    """Refuse a folder that is not a project under git and DVC."""
    needed = {"Snakefile": "run this in the project's folder", ".git": "run `git init`", ".dvc": "run `dvc init`"}
    if not str(root.resolve()).isprintable():
        raise UserError(f"{str(root.resolve())!r} has a letter that DVC's settings cannot hold. Rename the folder")
    for name, helps in needed.items():
        if not (root / name).exists():
            raise UserError(f"{root.resolve()} has no {name}: {helps}")


def commit_of(root: Path, revision: str) -> str:
    """Return the commit that a revision names."""
    try:
        return commands.run_program(root, "git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except UserError:
        raise UserError(f"{revision}: no such revision in git") from None


def recorded_commit(root: Path, revision: str) -> str:
    """Return the commit of a recorded revision."""
    commit = commit_of(root, revision)
    if not commands.run_program(root, "git", "ls-tree", commit, "dvc.lock"):
        raise UserError(f"{revision} has no dvc.lock: nothing was recorded in it")
    return commit


def refuse(faults: Sequence[Fault], what: str) -> None:
    """Raise an error that lists the faults, if there are any."""
    if faults:
        listed = [f"  {fault.fact}" for fault in faults[:SHOWN]]
        more = [f"  and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        ours = [fault.path for fault in faults if fault.stage]
        fixes = ([STRANGE] if len(ours) < len(faults) else []) + ([remade(*ours)] if ours else [])
        raise UserError("\n".join([f"{what}: {len(faults)} artifacts fail their checks", *listed, *more, *fixes]))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


@contextmanager
def _kept_on_failure(*paths: Path) -> Iterator[None]:
    """Put files back as they were if anything fails; that takes no room, for the disk may be full then."""
    copies = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in paths}
    try:
        for path, copy in copies.items():
            if path.is_file():
                shutil.copyfile(path, copy)
        try:
            yield
        except BaseException:
            for path, copy in copies.items():
                copy.replace(path) if copy.exists() else path.unlink(missing_ok=True)
            raise
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)
