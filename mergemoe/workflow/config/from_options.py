"""Classes of params.yaml's choices, made from tables of options: keys, defaults, ranges, descriptions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import AfterValidator, Field, create_model

from mergemoe.methods.options import Option
from mergemoe.workflow.config.base import Section

S = TypeVar("S", bound=Section)


def section(base: type[S], key: str, name: str, text: str, options: Mapping[str, Option]) -> type[S]:
    """Return the class of the choices whose `key`, such as `method`, is `name`; keys of no option are refused."""
    fields = {
        option: (_type(row), Field(default=_default(row), description=row.text)) for option, row in options.items()
    }
    return create_model(name, __base__=base, __doc__=text, **{key: (Literal[name], ...)}, **fields)  # pyright: ignore


def _default(option: Option) -> Any:
    if option.default is None:
        return ...
    return list(option.default) if isinstance(option.default, tuple) else option.default


def _type(option: Option) -> Any:
    if option.several:
        return Annotated[list[Literal[option.words]], Field(min_length=1), AfterValidator(_without_repeats)]  # pyright: ignore
    bounds = Field(gt=option.above, ge=option.at_least, le=option.at_most)
    number = Annotated[int, bounds] if option.whole else Annotated[float, bounds]
    if not option.words:
        return number
    words = Literal[option.words]
    return Union[words, number] if option.takes_numbers else words  # noqa: UP007


def _without_repeats(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"{names} names one of them twice. Name each once")
    return names
