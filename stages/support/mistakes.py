"""Show a user's mistake that the Snakefile finds as one plain message."""

from collections.abc import Iterator
from contextlib import contextmanager

from snakemake.exceptions import WorkflowError

from mergemoe.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a UserError into the error that Snakemake prints without a traceback."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error)) from None
