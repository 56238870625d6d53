"""Summaries of results: what a comparison needs where the recorded files themselves are not at hand.

A part of a file has decisions (names, shapes, whole numbers, text, and how JSON is nested), kept as a digest, a map of
experts to groups as it is; and numbers, kept as their norm and a few sums with random signs (array_parts.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mergemoe.artifacts import digests, provenance
from mergemoe.artifacts.paths import CARDS, ERRORS, METRICS, QUALITY, REPORTED
from mergemoe.artifacts.reading import reading
from mergemoe.workflow.comparison.array_parts import SHORT, read_rows, read_tensors, summarize_arrays
from mergemoe.workflow.comparison.json_parts import MADE_FROM, THE_FILE, summarize_json

ARRAYS = {".safetensors": read_tensors, ".h5": read_rows}


class Apart(NamedTuple):
    """How two results differ.

    decisions: the parts that differ in more than numbers; of lists that are kept it says in which entries.
    numbers: {part: ||a - b|| / ||a||} of the others that differ.
    """

    decisions: list[str]
    numbers: dict[str, float]


def has_summary(path: str) -> bool:
    """Tell whether a result has a summary: not what the report writes, which is rendered again (rendering.py)."""
    written = (METRICS, QUALITY, ERRORS, CARDS, str(Path(REPORTED).parent))
    return not any(Path(path).is_relative_to(one) for one in written)


def summarize(path: Path) -> dict[str, dict[str, Any]]:
    """Return {part: its digest, and its norm and sums if it has numbers} of a result.

    The files that the record of a checkpoint lists have their own.

    Raises:
        ArtifactError: it cannot be read.
    """
    with reading(path):
        made = provenance.read_provenance(path)
        of_inputs = {MADE_FROM: _decision(sorted(made["inputs"]))} if made is not None else {}
        if path.suffix == ".json":
            whole = json.loads(path.read_text(encoding="utf-8"))
            if path.name == "provenance.json":
                del whole["files"]
            return {**summarize_json(whole), **of_inputs}
        if path.suffix in ARRAYS:
            return {**summarize_arrays(ARRAYS[path.suffix](path)), **of_inputs}
        return {THE_FILE: _decision(digests.sha256(path))}


def _decision(value: Any) -> dict[str, str]:
    return {"digest": digests.digest_json(value)[:SHORT]}


def compare_summaries(one: Mapping[str, Any], other: Mapping[str, Any]) -> Apart:
    """Compare the summaries of two results of one path; the first is the recorded one."""
    decisions, numbers = sorted(one.keys() ^ other.keys()), dict[str, float]()
    for name in sorted(one.keys() & other.keys()):
        a, b = dict(one[name]), dict(other[name])
        (size, sums), (_, others) = ((part.pop("norm", None), part.pop("sums", [])) for part in (a, b))
        if a != b or len(sums) != len(others):
            decisions.append(name + _where(a.get("value"), b.get("value")))
        elif sums != others:
            far = float(np.sqrt(np.mean(np.subtract(sums, others) ** 2)))
            numbers[name] = far / size if size else float("inf")
    return Apart(decisions, numbers)


def _where(recorded: list[Any] | None, here: list[Any] | None) -> str:
    """Return which entries of a list that is kept are others: experts in another group, other continuations."""
    if not recorded or not here or len(recorded) != len(here):
        return ""
    moved = (str(i) for i, (a, b) in enumerate(zip(recorded, here, strict=True)) if a != b)
    return f" of {', '.join(moved)}"
