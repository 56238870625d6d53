"""The table of refinements: the options of each kind (`by` in section refine), with their defaults and ranges.

params.yaml, `mergemoe.compress` and docs/method.md take names, defaults, ranges and descriptions from here.
"""

from collections.abc import Mapping
from typing import Any

from mergemoe.methods.options import Option

LAYER = {
    "steps": Option(
        "steps of the descent; auto: 100, then 200, 400 and so on, until the held-out error falls by less than a tenth",
        default="auto",
        words=("auto",),
        at_least=0,
        at_most=10_000_000,
        whole=True,
    ),
    "batch": Option("fitted tokens of one step", default=2048, at_least=1, at_most=10_000_000, whole=True),
    "rate": Option(
        "step of Adam, in units of a matrix's RMS over the square root of its inputs, times the cube root of the "
        "start's held-out error",
        default=4.0,
        above=0,
    ),
    "parts": Option(
        "what is fitted; matrices with their biases; the router if the routing is pruned or folded",
        default=("gate", "up", "down"),
        words=("gate", "up", "down", "router"),
        several=True,
    ),
    "seed": Option("draws the tokens of each step", default=0, at_least=0, at_most=1_000_000, whole=True),
    "dtype": Option("of products; sums and weights stay in float32", default="float32", words=("float32", "bfloat16")),
    "targets": Option(
        "the layer's original outputs are kept on the disk, or recomputed for every step",
        default="kept",
        words=("kept", "recomputed"),
    ),
}
KINDS = {"layer": LAYER}


def misfit(options: Mapping[str, Any], routing: str) -> str | None:
    """Return why a refine does not fit a solve of this routing; None if it does."""
    if routing == "preserved" and "router" in options["parts"]:
        return (
            "`parts` names the router, but the routing is preserved, so the checkpoint keeps the original router. "
            "Leave `router` out, or take a method that prunes or folds it"
        )
    return None
