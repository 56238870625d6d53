"""Slim experts (ours): keep every expert, with its I' best neurons. This is the control without merging."""

from typing import Literal

from mergemoe.methods import select
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem, kept: int, ridge: float | Literal["auto"], memory: float) -> list[Merged]:
    """Return, per expert, its `kept` best neurons and their down-projections, solved jointly."""
    return select.merge(problem, kept, ridge, memory)
