"""Check from the record of a solve whether a layer had enough calibration tokens (docs/method.md)."""

from collections.abc import Iterable, Mapping
from typing import Any


def worst(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return how well the tokens determine a layer's solution: the worst of its groups in each figure."""
    groups, error = layer["groups"], layer["output_error"]
    wholes = [(group["layer_tokens"], group["layer_unknowns"]) for group in groups if "layer_tokens" in group]
    fits = wholes or [(group["tokens"], group["unknowns"]) for group in groups if group.get("unknowns")]
    return {
        "layer": layer["layer"],
        "merged": len(groups),
        "fit": min(fits, key=lambda fit: fit[0] / fit[1], default=None),
        "rank": _least(group.get("rank") for group in groups),
        "effective_rank": _least(group.get("effective_rank") for group in groups),
        "condition": max((group["condition"] for group in groups if group.get("condition") is not None), default=None),
        "errors": [error["fit"], error["heldout"]],
        "ratio": error["heldout"] / error["fit"] if error["fit"] and error["heldout"] is not None else None,
    }


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
