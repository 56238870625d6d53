"""Section refine of params.yaml: one kind of refinement (`by`) and its options per named choice.

The keys, defaults, ranges and descriptions come from the table in reconstruction/options.py. A second kind there makes
`Refine` a union that `by` discriminates, as `method` does in section solve.
"""

from typing import TYPE_CHECKING

from mergemoe.reconstruction import options
from mergemoe.workflow.config import from_options
from mergemoe.workflow.config.base import Section, Threads


class Refinement(Section):
    """What every kind has."""

    by: str
    threads: Threads = 1

    def misfit(self, routing: str) -> str | None:
        """Return why it does not fit a solve of this routing; None if it does."""
        return options.misfit(self.model_dump(), routing)


LAYER = from_options.section(
    Refinement, "by", "layer", "each layer by itself, to its original routed output", options.LAYER
)

if TYPE_CHECKING:
    Refine = Refinement
else:
    Refine = LAYER
