"""Types of the record of a refine, the JSON artifact of one layer beside its weights."""

from typing import TypedDict

from mergemoe.moe.records import ChangeRecord


class Measurement(TypedDict):
    """The errors of a refine after a step: held out, and the mean over the batches since the last measurement.

    The start has no batch before it, so its `fit` is None.
    """

    step: int
    fit: float | None
    heldout: float


class RefineRecord(ChangeRecord):
    """The refine of one layer: also the steps taken, and the step whose state was kept."""

    steps: int
    best_step: int
    history: list[Measurement]


class LayerRefine(RefineRecord):
    """The artifact of stage refine, beside the refined weights."""

    layer: int
