"""Restore a recorded revision: git's files, the artifacts, and Snakemake's notes of them."""

import shutil
from pathlib import Path

from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock, verify_results
from mergemoe.workflow.ledger.clone import bring, cache, clone, fetch
from mergemoe.workflow.ledger.record import check_project, recorded_commit


def restore(root: Path, revision: str) -> str:
    """Bring back a recorded revision: git's files, the artifacts, and Snakemake's notes of them.

    Raises:
        UserError: where something would be lost, or the revision was not recorded, or its artifacts cannot be had; the
            tree is what it was then.
    """
    check_project(root)
    commit = recorded_commit(root, revision)
    if dirty := commands.run(root, "git", "status", "--porcelain", "--untracked-files=no").splitlines():
        raise UserError(f"not restored: {len(dirty)} tracked files have changes ({dirty[0][3:]}); commit them first")
    _refuse_unrecorded(root)
    with clone(root, commit) as tree:
        fetch(tree)  # before anything changes here
    start = commands.run(root, "git", "rev-parse", "--abbrev-ref", "HEAD").strip()
    if start == "HEAD":
        start = commands.run(root, "git", "rev-parse", "HEAD").strip()
    old = _outs(root)
    commands.run(root, "git", "checkout", "--quiet", revision)
    bring(root)
    for path in old - _outs(root):  # of the revision that was left, and recorded there
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink(missing_ok=True)
    commands.run(root, "snakemake", "--cores", "1", "--touch", "--forceall", "--quiet")
    if jobs := commands.pending(root):
        raise UserError(f"{revision} is here, but Snakemake would run {jobs}: it was not recorded by `mergemoe record`")
    return f"restored {revision} ({commit[:12]}); `mergemoe restore {start}` goes back"


def _refuse_unrecorded(root: Path) -> None:
    """Refuse where a result would be lost: git has it not, nor DVC's cache, whichever revision it is of."""
    kept, in_git = cache(root), set(commands.run(root, "git", "ls-files", "results").splitlines())
    found = [path for path in verify_results.files(root) if path not in in_git]
    lost = [path for path in found if not dvc_lock.cached(kept, dvc_lock.digest(root / path) or "")]
    if lost:
        raise UserError(
            f"not restored: {len(lost)} files below results/ are not recorded, such as {lost[0]}. "
            "`mergemoe record` keeps them; or delete them"
        )


def _outs(root: Path) -> set[str]:
    return {entry.path for entry in dvc_lock.outs(root)} if (root / "dvc.lock").is_file() else set()
