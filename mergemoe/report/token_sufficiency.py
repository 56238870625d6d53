"""Check from the record of a solve whether a layer had enough calibration tokens (docs/method.md)."""

from collections.abc import Iterable
from typing import Any

from mergemoe.moe.records import ByPart, LayerSolve


def worst(layer: LayerSolve, error: ByPart) -> dict[str, Any]:
    """Return how well the tokens determine a layer's solution: the worst of its groups in each figure.

    `error` is the layer's output error, after a refine if there is one.
    """
    groups = layer["groups"]
    wholes = [(g["layer_tokens"], g["layer_unknowns"]) for g in groups if "layer_tokens" in g and "layer_unknowns" in g]
    parts = [(g["tokens"], g["unknowns"]) for g in groups if "tokens" in g and "unknowns" in g and g["unknowns"]]
    return {
        "layer": layer["layer"],
        "merged": len(groups),
        "fit": min(wholes or parts, key=lambda fit: fit[0] / fit[1], default=None),
        "rank": min(_known(group.get("rank") for group in groups), default=None),
        "effective_rank": min(_known(group.get("effective_rank") for group in groups), default=None),
        "condition": max(_known(group.get("condition") for group in groups), default=None),
        "errors": [error["fit"], error["heldout"]],
        "ratio": error["heldout"] / error["fit"] if error["fit"] and error["heldout"] is not None else None,
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
