"""Errors that a user can act on. Any other exception is a bug and keeps its traceback."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in the parameters or the data. The message names the fact, the reason and the fix."""


class ArtifactError(UserError):
    """A file between two stages is missing, damaged or out of date."""


def in_short(error: BaseException) -> str:
    """Return the kind of another library's error and what it says, which may be a whole file, in 500 letters."""
    return one_line(f"{type(error).__name__}: {error}")


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Name a file or a folder in a user's error that does not."""
    try:
        yield
    except UserError as error:
        if type(error) is not UserError or str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from None


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


_FOLDERS = {"capture": 4, "models": 6, "scores": 5}  # parts of the path of a folder that a job writes as a whole
_BY_REPORT = {"metrics.json", "quality.csv", "errors.csv", "report", "cards"}


def output_of(path: str | Path) -> str | None:
    """Return the output of Snakemake that a file below results/ belongs to; None if it is elsewhere."""
    parts = Path(os.path.normpath(path)).parts
    if "results" not in parts or len(below := parts[-1 - parts[::-1].index("results") :]) < 2:
        return None
    stage = below[1]
    if stage.startswith("."):  # the job cache
        return None
    if stage in _BY_REPORT:
        return "results/metrics.json"
    if stage == "convert":
        return "/".join([*below[:3], "provenance.json"])
    whole = stage in _FOLDERS and (stage != "scores" or below[3:5] == ("full", "reference"))
    return "/".join(below[: _FOLDERS[stage]] if whole else below)


def remade(*paths: str | Path) -> str:
    """Return the sentence that says how artifacts are made again.

    Snakemake makes what it calls an output, which may be the folder of a file, and asks for nothing above an output
    that is there; so it must be told.
    """
    outputs = dict.fromkeys(output for path in paths if (output := output_of(path)))
    if not outputs:
        return "Delete it and run `snakemake` again, which rebuilds it."
    named = " ".join(map(shlex.quote, outputs))
    return f"`snakemake --cores all --forcerun {named}` makes it again, and what depends on it."


def damaged_artifact(path: str | Path, fact: str) -> ArtifactError:
    """Return the error for a damaged artifact; `fact` completes the sentence that begins with the path."""
    return ArtifactError(f"{path} {fact}. {remade(path)}")
