"""One error for whatever goes wrong when a file between two stages is read: the file, the fact, the way out."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergemoe.errors import ArtifactError, damaged_artifact, in_short

MISSING = {errno.ENOENT, errno.ENOTDIR}
OF_THE_CONTENT = {None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG}  # what the bytes of a damaged file lead to
NO_LINK = (
    "Put the file or folder itself there (`cp -rL`), or delete the link and run `snakemake` again, which makes it."
)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what a reader of an artifact raises into an ArtifactError.

    A file is called damaged only if its content is. If the system cannot read it (a lock, a permission, a disk), it
    may be whole. What is no file, such as a pipe that never ends, is refused before it is opened.
    """
    refuse_no_file(path)
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # a library's own, of any kind: it was given nothing but this file
        number = _system_error(error)
        if number in MISSING:
            raise damaged_artifact(path, "is missing") from None
        if number not in OF_THE_CONTENT:
            raise ArtifactError(
                f"{path} cannot be read now ({in_short(error)}). It may be whole, so do not delete it: look at its "
                "permissions, at its disk, and for another process that locks it. Then run the same command again."
            ) from error
        raise damaged_artifact(path, f"cannot be read as an artifact ({in_short(error)})") from error


def _system_error(error: Exception) -> int | None:
    """Return the number of the system's error, which HDF5 may have put into the text of a KeyError."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\berrno = (\d+)", str(error))
    return int(found[1]) if found else None


def refuse_no_file(path: str | Path) -> None:
    """Check that a path, if anything is there, leads to a file.

    Raises:
        ArtifactError: if it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says why
        return
    if not stat.S_ISREG(mode):
        raise ArtifactError(
            f"{path} is {kind_of(mode)}, and a file belongs there. Look at what put it there, move it away, then run "
            "the same command again."
        )


def kind_of(mode: int) -> str:
    """Return the noun for a path of a mode."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((noun for is_one, noun in kinds.items() if is_one(mode)), "a device")


def links_below(folder: str | Path) -> dict[str, str]:
    """Return {path: fact} of the links, pipes and devices below a folder, without hidden ones.

    No search of a folder for files follows a link, so what lies behind one would escape every check.
    """
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in (*folders, *files) if not name.startswith(".")):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # deleted just now
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                found[path] = f"{path} is {kind_of(mode)}, which neither the checks nor DVC look behind"
    return dict(sorted(found.items()))


def refuse_links(folder: str | Path) -> None:
    """Check that there is no link, pipe or device below a folder.

    Raises:
        ArtifactError: if there is one.
    """
    if found := links_below(folder):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ArtifactError(f"{next(iter(found.values()))}{more}. {NO_LINK}")
