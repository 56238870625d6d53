"""A temporary clone of a project, and the artifacts that a commit of it has."""

import configparser
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergemoe.errors import UserError, in_short
from mergemoe.workflow.ledger import commands, dvc_lock

DEEP = Path(*"abcdefghij")  # a dependency's path may lead up that many folders, which are then temporary, too
PREFIX = "mergemoe-"  # of temporary folders
LOCK = f"{socket.gethostname()}.lock"  # a file in each, locked while its process lives; other hosts may not see locks


@contextmanager
def temporary_clone(root: Path, commit: str) -> Iterator[Path]:
    """Yield a temporary clone at a commit, with the DVC cache and the remotes of `root`."""
    with _temporary_folder() as folder:
        tree = folder / DEEP / "project"
        tree.parent.mkdir(parents=True)
        commands.run_program(root, "git", "clone", "--quiet", "--no-checkout", str(root), str(tree))
        commands.run_program(tree, "git", "checkout", "--quiet", "--detach", commit)
        _configure(root, tree)
        for entry in dvc_lock.lock_entries(
            dvc_lock.read_lock(tree), "deps"
        ):  # a checkpoint or a text that is not in git
            ours, its = root / entry.path, tree / entry.path
            if not Path(entry.path).is_absolute() and not Path(os.path.normpath(its)).is_relative_to(folder):
                raise UserError(f"{entry.path}, on which {entry.stage} depends, is too far above the project's folder")
            if not entry.path.startswith("results/") and not its.exists() and ours.exists():
                its.parent.mkdir(parents=True, exist_ok=True)
                its.symlink_to(ours.resolve())
        yield tree


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder that is deleted at the end; if this process is killed, the next one deletes it.

    The system unlocks a file when the process that locked it ends, however it ends.
    """
    _delete_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        with (folder / "new.lock").open("w", encoding="utf-8") as lock:
            with suppress(OSError):  # a file system without locks: what a killed process leaves there stays
                fcntl.flock(lock, fcntl.LOCK_EX)
                (folder / "new.lock").rename(folder / LOCK)  # which has that name only with the lock on it
            try:
                yield folder
            finally:
                _delete(folder)


def _delete_abandoned(place: Path) -> None:
    """Delete the temporary folders that processes of this user and host left behind: no process holds their locks."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process uses it, or has just deleted it
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(folder)


def _delete(folder: Path) -> None:
    """Delete a temporary folder, its lock last: if this process is killed meanwhile, the next one goes on."""
    shutil.rmtree(folder / DEEP.parts[0], ignore_errors=True)
    if not (folder / DEEP.parts[0]).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _configure(root: Path, tree: Path) -> None:
    """Give a clone the cache and the remotes of `root`, whose configuration may have paths relative to itself."""
    found, whole = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    for path in (root / ".dvc" / name for name in ("config", "config.local")):
        try:
            found.read(path, encoding="utf-8")
        except (configparser.Error, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({in_short(error)}). It was cut or edited. `git checkout .dvc/config` brings "
                "DVC's settings back; config.local is yours alone"
            ) from None
    for name, section in found.items():
        url = section.get("url", "")
        path = "" if "://" in url or Path(url).is_absolute() else str((root / ".dvc" / url).resolve())
        whole.read_dict({name: {**section, **({"url": path} if url and path else {})}})
    whole.read_dict({"cache": {"dir": str(cache_folder(root))}})
    with (tree / ".dvc" / "config.local").open("w", encoding="utf-8") as file:
        whole.write(file)


def cache_folder(root: Path) -> Path:
    """Return the folder of DVC's cache."""
    return (root / commands.run_program(root, "dvc", "cache", "dir").strip()).resolve()


def fetch_artifacts(tree: Path) -> None:
    """Fetch the artifacts of a tree's dvc.lock from the remote into DVC's cache, if they are not there yet.

    Raises:
        UserError: if an artifact is in neither, unless dvc.yaml keeps it out of pushes; or DVC's cache is damaged.
    """
    kept, failed = cache_folder(tree), ""
    for entry in dvc_lock.locked_outs(tree):
        if dvc_lock.lacks_whole_list(kept, entry.md5):
            raise UserError(f"{entry.path} cannot be put in place. {_damage(tree, entry)}")
    if _missing(tree, kept):
        try:
            commands.run_program(tree, "dvc", "fetch")
        except UserError as error:
            failed = f"\n{error}"
    if lost := _missing(tree, kept) - commands.unpushed(tree):
        raise UserError(
            f"{', '.join(sorted(lost))}: neither in DVC's cache nor in a remote. Run `dvc push` on the machine that "
            f"recorded it, and add the remote to this project{failed}"
        )


def _missing(tree: Path, kept: Path) -> set[str]:
    in_git = set(commands.run_program(tree, "git", "ls-files", "results").splitlines())
    outs = [entry for entry in dvc_lock.locked_outs(tree) if entry.path not in in_git]
    return {entry.path for entry in outs if not dvc_lock.is_cached(kept, entry.md5)}


def checkout_artifacts(tree: Path) -> None:
    """Put the artifacts of a tree's dvc.lock in place, and check every byte.

    Raises:
        UserError: if some are not available, or are not what was recorded.
    """
    fetch_artifacts(tree)
    commands.run_program(tree, "dvc", "checkout", "--allow-missing")
    kept_out = commands.kept_out(tree)
    for entry in dvc_lock.locked_outs(tree):
        if entry.path not in kept_out and dvc_lock.dvc_digest(tree / entry.path) != entry.md5:
            fact = f"{entry.path} differs from dvc.lock, although DVC has just put it there"
            raise UserError(f"{fact}. {_damage(tree, entry)}")


def _damage(tree: Path, entry: dvc_lock.Entry) -> str:
    """Return which files of DVC's cache are damaged, and what brings them back."""
    found = [str(path) for path in dvc_lock.damaged_objects(cache_folder(tree), entry.md5)]
    if not found:
        return "DVC's cache lacks files of it now. Run this again"
    if commands.run_program(tree, "dvc", "remote", "list").strip():
        fix = "Delete these, and run this again: it fetches what the remote has of them"
    else:
        fix = "No remote has copies of them (`dvc remote list`). Put back these files from another copy of this project"
    return f"Of DVC's cache {len(found)} files are damaged: {', '.join(found)}. {fix}"
