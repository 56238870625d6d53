"""One error for whatever keeps a file from being written: what the system says, the place, the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mergemoe.errors import UserError

# The system's messages, which any library may pass on in an error of its own.
FULL = re.compile("no space left|file too large|quota exceeded", re.IGNORECASE)
READ_ONLY = re.compile("read-only file system", re.IGNORECASE)
REFUSED = re.compile(  # these may also be of reading
    "permission denied|operation not permitted|input/output error|file name too long|stale file handle", re.IGNORECASE
)
TAKEN = re.compile("not a directory|file exists", re.IGNORECASE)  # and so may these


def refused_write(error: BaseException) -> UserError | None:
    """Return the user's error for a full, read-only or forbidden place; None for any other error.

    The notes of atomic.atomic name the file: a full disk's own message does not.
    """
    said, notes = str(error), getattr(error, "__notes__", [])
    if isinstance(error, UserError):
        return None
    if found := FULL.search(said):
        fix = "Make room there"
    elif found := READ_ONLY.search(said) or (notes and REFUSED.search(said)):
        fix = "Make that place writable, or choose another"
    elif found := notes and TAKEN.search(said):
        fix = "Move away what lies there: a file, or a link to nothing"
    else:
        return None
    said = found[0].capitalize() if "\n" in said else said  # HDF5 adds its buffers
    return UserError(f"{', '.join([said, *notes])}. {fix}, then run the same again: what is finished is kept")


@contextmanager
def writing() -> Iterator[None]:
    """Turn an error of a place that takes no more data into a UserError.

    Raises:
        UserError: if it is one; other errors pass.
    """
    try:
        yield
    except Exception as error:
        if refused := refused_write(error):
            raise refused from error
        raise
