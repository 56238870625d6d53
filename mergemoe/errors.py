"""Failures that a user can act on; anything else is a bug and keeps its traceback."""


class UserError(Exception):
    """A mistake in the parameters or the data; the message says what was seen and what to change."""


class ArtifactError(UserError):
    """A file between two stages is not what its reader needs."""
