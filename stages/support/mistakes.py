"""A user's mistake, found by the Snakefile, ends the run in one clear message."""

from collections.abc import Iterator
from contextlib import contextmanager

from snakemake.exceptions import WorkflowError

from mergemoe.errors import UserError


@contextmanager
def told() -> Iterator[None]:
    """Turn a UserError into the error that Snakemake prints without a traceback."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error)) from None
