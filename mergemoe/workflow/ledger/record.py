"""Record and restore: DVC gets what Snakemake made only where it holds, and it comes back with Snakemake's notes.

DVC records whatever lies there, and Snakemake trusts whatever its own notes say; these two close the gaps.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mergemoe.artifacts import atomic, paths
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock, recorded_environment, verify_results
from mergemoe.workflow.ledger.verify_results import Fault

SHOWN = 12  # faults that a message lists
MEND = """\
Delete what does not belong there, or bring it back; `snakemake --cores all FILE ...` makes what is missing, and then
`snakemake --cores all` what follows from it."""


def record(root: Path) -> str:
    """Record a finished run in dvc.lock, and where it ran; return what was recorded, in words.

    Raises:
        UserError: where jobs are pending, or an artifact is not what path and params.yaml say; nothing changes then.
    """
    check_project(root)
    with ThreadPoolExecutor() as pool:  # both take seconds, mostly of imports
        asked = pool.submit(commands.ledger, root)
        jobs = commands.pending(root)
    if jobs:
        listed = ", ".join(f"{rule} {count}" for rule, count in jobs.items())
        raise UserError(f"not recorded: jobs are pending ({listed}). Run `snakemake --cores all` first")
    wanted = asked.result()
    refuse(verify_results.check(root, wanted["claims"]), "not recorded")
    before = {path: _text(path) for path in (root / "dvc.lock", root / "dvc.yaml")}
    try:
        if before[root / "dvc.yaml"] != wanted["dvc.yaml"]:
            _write(root / "dvc.yaml", wanted["dvc.yaml"])
        commands.run(root, "dvc", "commit", "--force")
        _check_lock(root)
    except UserError:
        for path, text in before.items():
            _write(path, text)
        raise
    changed = _text(root / "dvc.lock") != before[root / "dvc.lock"]
    if changed:
        recorded_environment.renew(root)
    found = verify_results.files(root)
    size = sum((root / path).stat().st_size for path in found)
    files = ["dvc.lock", "dvc.yaml", str(recorded_environment.FILE), paths.METRICS]
    end = f"`git add -A` and `git commit` keep {', '.join(files)}; `dvc push` the artifacts" if changed else "as before"
    return f"recorded {len(found)} files, {size / 1e6:,.1f} MB: {end}"


def _check_lock(root: Path) -> None:
    """Check that DVC has looked at the bytes; it trusts its notes of a file whose size and time are as they were."""
    for entry in dvc_lock.outs(root):
        if dvc_lock.digest(root / entry.path) != entry.md5:
            raise UserError(
                f"not recorded: DVC remembers other bytes of {entry.path} than there are. A file in it was replaced by "
                "one of the same size and time: `touch` the files in it, then record again"
            )


def check_project(root: Path) -> None:
    """Refuse a folder that is no project with a ledger."""
    needed = {"Snakefile": "run this in the project's folder", ".git": "run `git init`", ".dvc": "run `dvc init`"}
    for name, helps in needed.items():
        if not (root / name).exists():
            raise UserError(f"{root.resolve()} has no {name}: {helps}")


def commit_of(root: Path, revision: str) -> str:
    """Return the commit that a revision names."""
    try:
        return commands.run(root, "git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except UserError:
        raise UserError(f"{revision}: no such revision in git") from None


def recorded_commit(root: Path, revision: str) -> str:
    """Return the commit of a revision that was recorded."""
    commit = commit_of(root, revision)
    if not commands.run(root, "git", "ls-tree", commit, "dvc.lock"):
        raise UserError(f"{revision} has no dvc.lock: nothing was recorded then")
    return commit


def refuse(faults: Sequence[Fault], what: str) -> None:
    """Raise the error that lists faults, where there are any."""
    if faults:
        listed = [f"  {fault.fact}" for fault in faults[:SHOWN]]
        more = [f"  and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise UserError("\n".join([f"{what}: {len(faults)} artifacts do not hold", *listed, *more, MEND]))


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    with atomic.atomic(path) as file:
        file.write_text(text)
