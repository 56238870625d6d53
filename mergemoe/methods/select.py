"""Selected neurons, solved jointly (ours): `joint` with the best neurons of each group instead of averages."""

from typing import Literal

from mergemoe.methods import joint
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem, kept: int, ridge: float | Literal["auto"], memory: float) -> list[Merged]:
    """Return, per group, the `kept` best neurons of its members and their down-projections."""
    return joint.merge(problem, "selected", kept, ridge, memory)
