"""Names and paths in params.yaml: they become parts of paths, Snakemake's wildcards, and words of command lines."""

import re
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import AfterValidator

from mergemoe.artifacts.paths import RESULTS

LONGEST = 100  # letters; a file system takes 255 bytes, and a temporary name adds host and process
LONGEST_PATH, LONGEST_PART = 1000, 255  # letters of a whole path, bytes of a name in it
OWN = (RESULTS, "scratch", "logs", ".snakemake")  # folders in which the workflow makes and deletes files
RESERVED = {"results", "provenance"}  # names of our own files and folders


def fault_of_name(kind: str, name: str) -> str | None:
    """Return why a name of a choice of this kind does not do; None if it does."""
    task = kind == "evaluate.tasks"
    if not re.fullmatch(r"\w[\w.-]*" if task else r"\w+", name, re.ASCII):
        more = ", . and -" if task else ""  # some of lm-eval's have them
        return f"the name {name!r} becomes a path. Use letters, digits, _{more} only"
    if len(name) > LONGEST:
        return f"the name {name[:20]}... has {len(name)} letters; a path takes {LONGEST}"
    if name in RESERVED or re.fullmatch(r"layer_\d+", name) or (kind, name) == ("calibrate", "full"):
        return f"the name `{name}` is reserved for files of the workflow. Use another"
    if re.search(r"(.+?)\1{9}$", name):
        return f"the name {name} repeats itself at its end, which Snakemake takes for a mistake. Use another"
    return None


def fault_of_path(path: str) -> str | None:
    """Return why the path of a model, a text or a task does not do; None if it does."""
    if path.startswith("-"):
        return f"the path {path!r} would be read as an option. Write ./{path}"
    if any(letter in "{}" or not letter.isprintable() for letter in path):
        return f"the path {path!r} has braces or control characters, which Snakemake reads otherwise. Rename it"
    if len(path) > LONGEST_PATH or any(len(part.encode()) > LONGEST_PART for part in PurePath(path).parts):
        return (
            f"the path {path[:20]}... has {len(path)} letters; a file system takes {LONGEST_PART} bytes between slashes"
        )
    if PurePath(path) == PurePath(RESULTS):
        return f"the path {path!r} is the workflow's own folder. Move the files elsewhere"
    return None


def fault_of_input(path: str) -> str | None:
    """Return why the path of a text or a task does not do: a run would read what it makes itself."""
    if why := fault_of_path(path):
        return why
    try:
        place, own = Path(path).resolve(), {name: Path(name).resolve() for name in OWN}
    except (OSError, RuntimeError):  # links that lead to each other
        return f"the path {path!r} leads nowhere. Correct it"
    for name, folder in own.items():
        if place == folder or folder in place.parents:
            return f"the path {path!r} lies in the workflow's own folder {name}/. Move the files elsewhere"
        if place in folder.parents:
            return f"the path {path!r} holds the workflow's own folder {name}/. Give a folder of its own to the files"
    return None


def _checked(path: str) -> str:
    if why := fault_of_path(path):
        raise ValueError(why)
    return path


def _checked_input(path: str) -> str:
    if why := fault_of_input(path):
        raise ValueError(why)
    return path


LocalPath = Annotated[str, AfterValidator(_checked)]
InputPath = Annotated[str, AfterValidator(_checked_input)]
