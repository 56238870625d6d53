"""Types of the record of a refine, the JSON artifact of one layer beside its weights."""

from typing import TypedDict

from mergemoe.moe.records import ByPart, TokenCounts


class Measurement(TypedDict):
    """The errors of a refine after a step: held out, and the mean over the batches since the last measurement.

    The start has no batch before it, so its `fit` is None.
    """

    step: int
    fit: float | None
    heldout: float


class RefineRecord(TypedDict):
    """The refine of one layer: its errors before and after, the steps taken, and the step whose state was kept."""

    experts: int
    kept: int
    width: int
    tokens: TokenCounts
    start_error: ByPart
    output_error: ByPart
    steps: int
    best_step: int
    history: list[Measurement]


class LayerRefine(RefineRecord):
    """The artifact of stage refine, beside the refined weights."""

    layer: int
