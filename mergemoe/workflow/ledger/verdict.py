"""The verdict of an audit: identical, equivalent or different.

Equivalent is what another processor gives: every decision is the same, the numbers inside differ by rounding, and the
scores by less than a tenth of their standard errors. The bounds stand in docs/audit.md, with what they follow from.
"""

from collections.abc import Mapping
from typing import Any

from mergemoe.artifacts.paths import RESULTS

IDENTICAL, EQUIVALENT, DIFFERENT = "identical", "equivalent", "different"

FLOAT32 = 2.0**-24  # its unit roundoff
BFLOAT16 = 2.0**-9
# Largest ||a - b|| / ||a|| of a part of a stage's results.
BOUNDS = {
    "layout": 0.0,  # read from files
    "calibrate": 0.0,
    "capture": 64 * FLOAT32,  # a sum of roundings, a few for each layer below
    "profile": 64 * FLOAT32,
    "cluster": 64 * FLOAT32,
    "solve": BFLOAT16 / 8,  # one stored weight in a hundred falls on the other side of a rounding
    "refine": 16 * BFLOAT16,  # a descent takes roundings for gradients, and they grow
    "quantize": 16 * BFLOAT16,
    "assemble": 16 * BFLOAT16,  # holds what refine gives
    "evaluate": 64 * FLOAT32,  # the states of the full model; scores are judged by their standard errors
}
OURS = f"{RESULTS}/"
STANDARD_ERRORS = 0.1
# Of what magnifies roundings: runs that end with a descent, and greedy continuations, where two tokens may nearly tie.
MAGNIFIED = 0.5
RELATIVE = 1e-3  # of a number in metrics.json that has no standard error


def verdict(found: Mapping[str, Any]) -> str:
    """Return the verdict on the findings of an audit (audit.py)."""
    if found["identical"]:
        return IDENTICAL
    return DIFFERENT if reasons(found) else EQUIVALENT


def reasons(found: Mapping[str, Any]) -> list[str]:
    """Return the reasons why findings are different; none if they are equivalent."""
    facts = [fact for one in found["stages"].values() for fact in one["faults"]] + list(found["strays"])
    for name, one in found["stages"].items():
        facts += [f"{path} is not the recorded file" for path in one["other_bytes"] if not path.startswith(OURS)]
        for path, apart in one["apart"].items():
            facts += [f"{path}: {part} is another" for part in apart["decisions"]]
            facts += [
                f"{path}: {part} differs by {size:.1e} of its norm, where rounding explains {BOUNDS[name]:.1e}"
                for part, size in apart["numbers"].items()
                if not size <= BOUNDS[name]
            ]
    for key, (committed, here, error) in found["metrics"]["differ"].items():
        if not _close(key, committed, here, error):
            facts.append(f"metrics.json: {key} is {here}, and {committed} was committed")
    return facts


def largest(apart: Mapping[str, Any]) -> float | None:
    """Return the largest difference of numbers in the results of a stage; None if they differ in more than numbers."""
    if any(one["decisions"] for one in apart.values()):
        return None
    return max((size for one in apart.values() for size in one["numbers"].values()), default=0.0)


def _close(key: str, committed: float | None, here: float | None, error: float | None) -> bool:
    if committed is None or here is None:
        return False
    run, score = key.split(" ")
    if score.endswith("_stderr"):  # a standard error is not judged by one
        return True
    most = MAGNIFIED if "+" in run or score.startswith("generation/") else STANDARD_ERRORS
    return abs(here - committed) <= (most * error if error else RELATIVE * abs(committed))
