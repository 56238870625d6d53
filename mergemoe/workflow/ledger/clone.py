"""A temporary clone of a project, and the artifacts that a commit of it has."""

import configparser
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock


@contextmanager
def clone(root: Path, commit: str) -> Iterator[Path]:
    """Yield a temporary clone at a commit, with the DVC cache and the remotes of `root`."""
    with tempfile.TemporaryDirectory(prefix="mergemoe-") as folder:
        tree = Path(folder, "project")
        commands.run(root, "git", "clone", "--quiet", "--no-checkout", str(root), str(tree))
        commands.run(tree, "git", "checkout", "--quiet", "--detach", commit)
        _configure(root, tree)
        for entry in dvc_lock.entries(dvc_lock.read(tree), "deps"):  # a checkpoint or a text that git has not
            ours, its = root / entry.path, tree / entry.path
            if not entry.path.startswith("results/") and not its.exists() and ours.exists():
                its.parent.mkdir(parents=True, exist_ok=True)
                its.symlink_to(ours.resolve())
        yield tree


def _configure(root: Path, tree: Path) -> None:
    """Let a clone take artifacts from where `root` does; its configuration may name paths relative to itself."""
    found, whole = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    found.read([root / ".dvc" / name for name in ("config", "config.local")])
    for name, section in found.items():
        url = section.get("url", "")
        path = "" if "://" in url or Path(url).is_absolute() else str((root / ".dvc" / url).resolve())
        whole.read_dict({name: {**section, **({"url": path} if url and path else {})}})
    whole.read_dict({"cache": {"dir": str(cache(root))}})
    with (tree / ".dvc" / "config.local").open("w") as file:
        whole.write(file)


def cache(root: Path) -> Path:
    """Return the folder of DVC's cache."""
    return (root / commands.run(root, "dvc", "cache", "dir").strip()).resolve()


def fetch(tree: Path) -> None:
    """Bring what a tree's dvc.lock has into DVC's cache, from the remote where it is not there yet.

    Raises:
        UserError: where something is in neither; what dvc.yaml keeps out of pushes may be.
    """
    kept, failed = cache(tree), ""
    if _missing(tree, kept):
        try:
            commands.run(tree, "dvc", "fetch")
        except UserError as error:
            failed = f"\n{error}"
    if lost := _missing(tree, kept) - commands.unpushed(tree):
        raise UserError(
            f"{', '.join(sorted(lost))}: not in DVC's cache, and not in a remote. Run `dvc push` where it was "
            f"recorded, and give this project the remote{failed}"
        )


def _missing(tree: Path, kept: Path) -> set[str]:
    in_git = set(commands.run(tree, "git", "ls-files", "results").splitlines())
    return {
        entry.path for entry in dvc_lock.outs(tree) if entry.path not in in_git and not dvc_lock.cached(kept, entry.md5)
    }


def bring(tree: Path) -> None:
    """Put the artifacts of a tree's dvc.lock in place, and check every byte.

    Raises:
        UserError: where some cannot be had, or are not what was recorded.
    """
    fetch(tree)
    commands.run(tree, "dvc", "checkout", "--allow-missing")
    kept_out = commands.kept_out(tree)
    for entry in dvc_lock.outs(tree):
        if entry.path not in kept_out and dvc_lock.digest(tree / entry.path) != entry.md5:
            raise UserError(
                f"{entry.path} is not what dvc.lock says, though DVC has just put it there: its cache is damaged. "
                "Delete .dvc/cache and run this again, which takes all from the remote"
            )
