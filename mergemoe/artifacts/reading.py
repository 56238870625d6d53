"""One error for whatever goes wrong when a file between two stages is read: the file, the fact, the way out."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergemoe.errors import ArtifactError, damaged_artifact, in_short

MISSING = {errno.ENOENT, errno.ENOTDIR}
OF_THE_CONTENT = {None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG}  # what the bytes of a damaged file lead to


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what a reader of an artifact raises into an ArtifactError.

    A file is called damaged only if its content is. If the system cannot read it (a lock, a permission, a disk), it
    may be whole.
    """
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        if error.errno in MISSING:
            raise ArtifactError(f"{path} is missing. Run `snakemake` again, which makes it.") from None
        if error.errno not in OF_THE_CONTENT:
            raise ArtifactError(
                f"{path} cannot be read now ({error}). It may be whole, so do not delete it: look at its permissions, "
                "at its disk, and for another process that locks it. Then run the same command again."
            ) from error
        raise damaged_artifact(path, f"cannot be read as an artifact ({error})") from error
    except Exception as error:  # a library's own, of any kind: it was given nothing but this file
        raise damaged_artifact(path, f"cannot be read as an artifact ({in_short(error)})") from error
