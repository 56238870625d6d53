"""Section solve of params.yaml: one method and its options per named choice.

The keys, defaults, ranges and descriptions of each method come from the table in methods/catalogue.py.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, create_model, model_validator

from mergemoe.methods import catalogue
from mergemoe.methods.options import Method as Row
from mergemoe.methods.options import Option
from mergemoe.workflow.config.base import Section


class Solve(Section):
    """What every method has."""

    method: str
    threads: int = Field(default=1, gt=0, description="CPU threads; the last bits depend on it")

    @model_validator(mode="after")
    def _conflict(self) -> "Solve":
        if why := catalogue.conflict(self.model_dump()):
            raise ValueError(why)
        return self


def section(name: str, method: Row) -> type[Solve]:
    """Return the class of a method's choices; `method` must be its name, and other keys are refused."""
    fields = {
        key: (_type(option), Field(default=... if option.default is None else option.default, description=option.text))
        for key, option in method.options.items()
    }
    return create_model(name, __base__=Solve, __doc__=method.text, method=(Literal[name], ...), **fields)  # pyright: ignore


def _type(option: Option) -> Any:
    number = Annotated[float, Field(gt=option.above, ge=option.at_least, le=option.at_most)]
    if not option.words:
        return number
    words = Literal[option.words]
    return Union[words, number] if option.takes_numbers else words  # noqa: UP007


SECTIONS = {name: section(name, method) for name, method in catalogue.METHODS.items()}

if TYPE_CHECKING:
    Method = Solve
else:
    Method = Annotated[Union[tuple(SECTIONS.values())], Field(discriminator="method")]  # noqa: UP007
