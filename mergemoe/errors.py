"""Failures that a user can act on; anything else is a bug and keeps its traceback."""

from pathlib import Path


class UserError(Exception):
    """A mistake in the parameters or the data; the message says what was seen and what to change."""


class ArtifactError(UserError):
    """A file between two stages is not what its reader needs."""


def damaged_artifact(path: str | Path, fact: str) -> ArtifactError:
    """Return the error that names a damaged artifact and the way out."""
    return ArtifactError(f"{path} {fact}. Delete it and run `snakemake` again: it will be made anew.")
