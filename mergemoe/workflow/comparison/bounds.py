"""Bounds of rounding: how far the numbers of a stage may differ. docs/audit.md says what they follow from."""

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
    "assemble": 16 * BFLOAT16,  # holds what refine gives
    "evaluate": 64 * FLOAT32,  # the states of the full model
}
PARTS_OF_SCORES = 0.1  # of a task's parts: an answer in a hundred is another; verdict.py judges the scores themselves
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


def bound(stage: str, path: str) -> float:
    """Return the largest difference ||a - b|| / ||a|| of a part of a stage's result that rounding explains."""
    return PARTS_OF_SCORES if is_score(path) else BOUNDS.get(stage, 0.0)


def is_score(path: str) -> bool:
    """Tell whether a result has the scores of a task."""
    return path.startswith(f"{RESULTS}/scores/") and path.endswith(".json")
