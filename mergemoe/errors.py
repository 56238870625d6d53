"""Errors that a user can act on. Any other exception is a bug and keeps its traceback."""

from pathlib import Path


class UserError(Exception):
    """A mistake in the parameters or the data. The message names the fact, the reason and the fix."""


class ArtifactError(UserError):
    """A file between two stages is missing, damaged or out of date."""


def in_short(error: BaseException) -> str:
    """Return the kind of another library's error and what it says, which may be a whole file, in 500 letters."""
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str, longest: int = 500) -> str:
    """Return a text without its middle if it is longer; what a terminal does not show as a letter is escaped."""
    half = longest // 2
    kept = text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in kept)


def shown(value: object) -> str:
    """Return how Python writes a value, in 100 letters; what it refuses to write, such as 5,000 digits, by its type."""
    try:
        text = repr(value)
    except Exception:  # __repr__ is the value's own
        text = f"<{type(value).__name__}>"
    return one_line(text, 100)


def damaged_artifact(path: str | Path, fact: str) -> ArtifactError:
    """Return the error for a damaged artifact; `fact` completes the sentence that begins with the path."""
    return ArtifactError(f"{path} {fact}. Delete it and run `snakemake` again, which rebuilds it.")
