"""Section solve of params.yaml: one method and its options per named choice.

The keys, defaults, ranges and descriptions of each method come from the table in methods/catalogue.py.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field, model_validator

from mergemoe.methods import catalogue
from mergemoe.workflow.config import from_options
from mergemoe.workflow.config.base import Section, Threads


class Solve(Section):
    """What every method has."""

    method: str
    threads: Threads = 1

    @model_validator(mode="after")
    def _conflict(self) -> "Solve":
        if why := catalogue.conflict(self.model_dump()):
            raise ValueError(why)
        return self


SECTIONS = {
    name: from_options.section(Solve, "method", name, method.text, method.options)
    for name, method in catalogue.METHODS.items()
}

if TYPE_CHECKING:
    Method = Solve
else:
    Method = Annotated[Union[tuple(SECTIONS.values())], Field(discriminator="method")]  # noqa: UP007
