"""Show a user's mistake or a full disk that the Snakefile meets as one plain message."""

from collections.abc import Iterator
from contextlib import contextmanager

from snakemake.exceptions import WorkflowError

from mergemoe.artifacts.writing import writing
from mergemoe.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a UserError, or a full disk, into the error that Snakemake prints without a traceback."""
    try:
        with writing():
            yield
    except UserError as error:
        raise WorkflowError(str(error)) from None
