"""Write files whole or not at all: a temporary path, synced and renamed into place."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergemoe.artifacts.digests import sha256
from mergemoe.artifacts.run_guard import OVER, UNCHANGED, run_is_over
from mergemoe.errors import UserError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; sync it and rename it to `path` only if all went well.

    The temporary lies in results/.tmp/ if `path` lies below a folder `results`, else beside `path`. The caller makes it
    a file or a folder. A folder replaces an older one whole, or is dropped if the older one has the same content.
    """
    path = Path(path)
    results = results_above(path)
    home = results / ".tmp" if results else path.parent
    temporary = home / f"{path.name}.{socket.gethostname()}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # safetensors makes 0600
            _sync(file)
        _put(temporary, path)
        _sync(path.parent)
    except Exception as error:
        error.add_note(f"while {path} was written")  # a full disk's own message names no file
        raise
    finally:
        if os.path.isdir(temporary):  # pathlib's raises for a name that is too long
            shutil.rmtree(temporary)
        elif os.path.lexists(temporary):
            temporary.unlink()


def results_above(path: Path) -> Path | None:
    """Return the folder `results` that a path lies in."""
    return next((parent for parent in path.parents if parent.name == "results"), None)


def _put(temporary: Path, path: Path) -> None:
    """Rename, unless the same content is there: another copy of this job made it, and others may be reading it."""
    if run_is_over():
        raise UserError(f"{path} is not written: {OVER}")
    if path.exists() and sha256(path) == sha256(temporary):
        UNCHANGED.add(path)
        return
    try:
        os.replace(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        old = temporary.with_name(f"{temporary.name}.old")
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(results: str | Path) -> None:
    """Remove the temporary files of this host's jobs that no longer run."""
    for temporary in Path(results, ".tmp").glob(f"*.{socket.gethostname()}.*"):
        if not Path("/proc", temporary.suffix[1:]).exists():
            remove(temporary)


def remove(path: Path) -> None:
    """Delete a folder, or a file, link or pipe, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
