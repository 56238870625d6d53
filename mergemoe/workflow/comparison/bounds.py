"""Bounds of rounding: how far the numbers of a result may differ. docs/audit.md says what they follow from."""

import re
from pathlib import Path

from mergemoe.artifacts.paths import RESULTS

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
    "assemble": 16 * BFLOAT16,  # what a descent gave; of other runs as of a solve, and 0 of weights that are copied
    "evaluate": 64 * FLOAT32,  # the states of the full model
}
ANSWERS = 0.1  # of the scores of a task's parts: an answer in a hundred is another
ERRORS = 5e-3  # of the layers' output errors in fidelity.json
CONDITION = 1.0  # of condition numbers, whose smallest eigenvalue may be all rounding
# Largest relative difference of the goals by which a stage decides, where two alternatives nearly tie (ties.py).
GOAL_BOUNDS = {
    "capture": 64 * FLOAT32,
    "evaluate": 64 * FLOAT32,
    "cluster": 64 * FLOAT32,
    "solve": 64 * FLOAT32,
    "refine": BFLOAT16 / 2,  # the error of a descent, whose roundings have grown
    "quantize": BFLOAT16 / 2,
}
# Largest difference of what follows a choice: of a capture, a hundredth of the choices, as sqrt(2 share); of a layer's
# weights, an eighth of the neurons.
MOVED = {"capture": 0.15, "evaluate": 0.15, "solve": 0.5, "refine": 0.5, "quantize": 0.5}
MERGED = r".*\.(experts?|gate|router|block_sparse_moe)\b.*"  # parts of a checkpoint that a compression makes


def bound(stage: str, path: str, part: str) -> float:
    """Return the largest difference ||a - b|| / ||a|| of a part of a stage's result that rounding explains."""
    if is_score(path):
        return ERRORS if Path(path).name == "fidelity.json" else ANSWERS
    if part == "groups.condition":
        return CONDITION
    if stage == "assemble" and path.endswith(".safetensors"):
        if not re.fullmatch(MERGED, part):
            return 0.0
        return BOUNDS["assemble" if has_descent(path) else "solve"]
    return BOUNDS.get(stage, 0.0)


def is_score(path: str) -> bool:
    """Tell whether a result has the scores of a task."""
    return path.startswith(f"{RESULTS}/scores/") and path.endswith(".json")


def has_descent(path: str) -> bool:
    """Tell whether a result is of a run that ends with a descent or is quantized, by the name of its folder."""
    return any(mark in Path(path).parent.name for mark in "+@")
