"""Summaries of JSON: what has the same keys, at any place in lists, is one part.

A part's decisions (whole numbers, text, and how the values are nested) are kept as a digest, and its numbers as those
of an array. Of a score file, what metrics.json has is left to the judgement of the scores (verdict.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mergemoe.artifacts import digests
from mergemoe.workflow.comparison.array_parts import SHORT, summarize_arrays

NUMBER = [0]  # stands for one in a digest; no other end of a branch of JSON is a list with an entry
EXPERT_MAP = "expert_map"  # a decision that is kept itself
TEXTS = "continuations.text"  # of which a digest each is kept
THE_FILE = "the file"  # a file that is one decision
MADE_FROM = "made from"  # the names of the inputs
SCORES = ("fidelity", "generate", "evaluate")  # the stages that write score files


def summarize_json(whole: Any) -> dict[str, dict[str, Any]]:
    """Return {part: its digest, and its norm and sums if it has numbers} of a JSON value.

    A file that is no artifact, such as a tokenizer's, is one decision.
    """
    if not isinstance(whole, dict) or "provenance" not in whole:
        return {THE_FILE: {"digest": digests.digest_json(whole)[:SHORT]}}
    of_score = whole["provenance"].get("stage") in SCORES
    numbers: dict[str, list[float]] = {}
    rest: dict[str, list[Any]] = {}
    for keys, place, value in _branches({key: inner for key, inner in whole.items() if key != "provenance"}):
        number = isinstance(value, float)
        rest.setdefault(".".join(keys), []).append([keys, place, NUMBER if number else value])
        if number and (name := _numbers_of_score(keys) if of_score else ".".join(keys)):
            numbers.setdefault(name, []).append(value)
    found = summarize_arrays(((name, np.array(each)) for name, each in numbers.items()), part=str)
    for name, each in rest.items():
        found[name] = {**found.get(name, {}), "digest": digests.digest_json(each)[:SHORT]}
    for name, values in _kept(whole, rest):
        found[name]["value"] = values
    return found


def _branches(
    value: Any, keys: tuple[str, ...] = (), place: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], Any]]:
    """Yield the keys, the places in lists and the value of every end of a branch."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _branches(inner, (*keys, key), place)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _branches(inner, keys, (*place, i))
    else:
        yield keys, place, value


def _numbers_of_score(keys: tuple[str, ...]) -> str | None:
    """Return the part of a number in a score file: the same score of all parts of a task is one.

    None for the scores, which metrics.json has.
    """
    if keys[0] == "scores":
        return None
    return ".".join((keys[0], "*", *keys[2:]) if keys[0] == "parts" else keys)


def _kept(whole: dict[str, Any], rest: dict[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    if EXPERT_MAP in whole:
        yield EXPERT_MAP, whole[EXPERT_MAP]
    if TEXTS in rest:
        yield TEXTS, [digests.digest_json(text)[:SHORT] for *_, text in rest[TEXTS]]
