"""Restore a recorded revision: files in git, artifacts, and Snakemake's metadata of them; or leave all as it was."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergemoe.artifacts import run_guard
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock, verify_results
from mergemoe.workflow.ledger.clone import cache_folder, checkout_artifacts, fetch_artifacts, temporary_clone
from mergemoe.workflow.ledger.record import check_project, recorded_commit


def restore_revision(root: Path, revision: str) -> str:
    """Restore a recorded revision: files in git, artifacts, and Snakemake's metadata of them.

    Raises:
        UserError: if a run is going on, something would be lost, the revision was not recorded, or its artifacts are
            not available. The tree does not change then.
    """
    check_project(root)
    commit = recorded_commit(root, revision)
    with _alone(root):
        if dirty := commands.run_program(root, "git", "status", "--porcelain", "--untracked-files=no").splitlines():
            raise UserError(
                f"not restored: {len(dirty)} tracked files have changes ({dirty[0][3:]}); commit them first"
            )
        _refuse_unrecorded(root)
        with temporary_clone(root, commit) as tree:
            fetch_artifacts(tree)  # before anything changes here
        start = commands.run_program(root, "git", "rev-parse", "--abbrev-ref", "HEAD").strip()
        if start == "HEAD":
            start = commands.run_program(root, "git", "rev-parse", "HEAD").strip()
        _bring_or_go_back(root, revision, start)
    return f"restored {revision} ({commit[:12]}); `mergemoe restore {start}` goes back"


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuse if Snakemake runs here, and keep it from starting while the tree changes."""
    if any((root / ".snakemake" / "locks").glob("*")):
        raise UserError(
            "not restored: a run of Snakemake holds this folder's lock. Wait for its end; if it was killed, "
            "`snakemake --unlock` releases the lock"
        )
    mark = root / run_guard.RESTORING
    mark.parent.mkdir(exist_ok=True)
    os.environ[run_guard.RESTORE] = str(os.getpid())
    mark.write_text(str(os.getpid()), encoding="utf-8")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        del os.environ[run_guard.RESTORE]


def _bring_or_go_back(root: Path, revision: str, start: str) -> None:
    try:
        _bring(root, revision)
    except BaseException as error:
        try:
            _bring(root, start)
        except UserError as second:
            raise UserError(
                f"not restored: {error}\nIt could not go back to {start} either: {second}\n"
                f"When the reason is gone, `git checkout {start}`, `dvc checkout` and `snakemake --touch` do"
            ) from error
        if isinstance(error, UserError):
            raise UserError(f"not restored, and all is as it was: {error}") from None
        raise


def _bring(root: Path, revision: str) -> None:
    """Put a revision's files, artifacts and Snakemake's metadata in place."""
    old = _outs(root)
    commands.run_program(root, "git", "checkout", "--quiet", revision)
    checkout_artifacts(root)
    for path in old - _outs(root):  # of the revision that was left, and recorded there
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink(missing_ok=True)
    commands.run_program(root, "snakemake", "--cores", "1", "--touch", "--forceall", "--quiet")
    if jobs := commands.pending_jobs(root):
        raise UserError(f"Snakemake would run {jobs} at {revision}: it was not recorded by `mergemoe record`")


def _refuse_unrecorded(root: Path) -> None:
    """Refuse if a result would be lost: one that is neither in git nor in DVC's cache, for any revision."""
    kept, in_git = cache_folder(root), set(commands.run_program(root, "git", "ls-files", "results").splitlines())
    found = [path for path in verify_results.result_files(root) if path not in in_git]
    digests = {path: dvc_lock.dvc_digest(root / path) or "" for path in found}
    if lost := [path for path, md5 in digests.items() if not dvc_lock.is_cached(kept, md5)]:
        raise UserError(
            f"not restored: {len(lost)} files below results/ are not in DVC's cache, such as {lost[0]}, and would be "
            "lost. `mergemoe record` keeps them there; or delete them"
        )
    if damaged := [str(path) for md5 in digests.values() for path in dvc_lock.damaged_objects(kept, md5)]:
        raise UserError(
            f"not restored: of DVC's cache {len(damaged)} files are damaged: {', '.join(damaged)}. What they held is "
            "below results/ now. Delete these damaged files, and `mergemoe record` keeps it again"
        )


def _outs(root: Path) -> set[str]:
    return {entry.path for entry in dvc_lock.locked_outs(root)} if (root / "dvc.lock").is_file() else set()
