"""The types of the methods' table: a method, and one of its options with its default, its range and its meaning."""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from mergemoe.text_table import markdown_table


@dataclass(frozen=True)
class Option:
    """One key of a method in params.yaml, and one keyword of `mergemoe.compress`.

    Its value is one of `words`, or a number if a bound is given; with `several` it is a list of some of `words`.

    text: the meaning, in one sentence; default: None if the option must be given; above, at_least, at_most: the bounds;
    whole: whether the number is an integer; several: whether the value is a list, not empty and without repeats.
    """

    text: str
    default: float | str | tuple[str, ...] | None = None
    words: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    whole: bool = False
    several: bool = False

    @property
    def takes_numbers(self) -> bool:
        """Tell whether a number is allowed."""
        return any(bound is not None for bound in (self.above, self.at_least, self.at_most))

    @property
    def allowed(self) -> str:
        """Return the allowed values in words."""
        if self.several:
            return f"a list of one or more of {', '.join(self.words)}"
        named = {"above": self.above, "at least": self.at_least, "at most": self.at_most}
        bounds = [f"{name} {bound:g}" for name, bound in named.items() if bound is not None]
        number = f"a {'whole ' * self.whole}number {' and '.join(bounds)}" if bounds else ""
        return ", or ".join(filter(None, [", ".join(self.words), number]))

    def allows(self, value: object) -> bool:
        """Tell whether a value is allowed."""
        if self.several:
            named = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
            return bool(named) and all(one in self.words for one in named) and len(set(named)) == len(named)
        if isinstance(value, str):
            return value in self.words
        kind = numbers.Integral if self.whole else numbers.Real
        if not self.takes_numbers or isinstance(value, bool) or not isinstance(value, kind):
            return False
        try:
            number = float(value)
        except OverflowError:  # an int that is too large
            return False
        low = self.above is None or number > self.above
        high = self.at_most is None or number <= self.at_most
        return math.isfinite(number) and low and high and (self.at_least is None or number >= self.at_least)


@dataclass(frozen=True)
class Method:
    """One method of `solve`: its idea in one sentence, the groupings (`by` of `cluster`) that it fits, its options."""

    text: str
    groupings: tuple[str, ...]
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


def markdown(methods: Mapping[str, Method]) -> str:
    """Return two Markdown tables: the methods, and their options; methods with the same option share a line."""
    rows = [[f"`{name}`", method.text, ", ".join(method.groupings)] for name, method in methods.items()]
    owners: dict[tuple[str, Option], list[str]] = {}
    for name, method in methods.items():
        for key, option in method.options.items():
            owners.setdefault((key, option), []).append(f"`{name}`")
    options = [
        [f"`{key}`", ", ".join(names), _default(option), option.allowed, option.text]
        for (key, option), names in sorted(owners.items(), key=lambda item: item[0][0])
    ]
    return "\n\n".join(
        [
            markdown_table(["method", "what it does", "groupings"], rows),
            markdown_table(["option", "methods", "default", "allowed", "meaning"], options),
        ]
    )


def options_markdown(options: Mapping[str, Option]) -> str:
    """Return one Markdown table of options."""
    rows = [[f"`{key}`", _default(option), option.allowed, option.text] for key, option in options.items()]
    return markdown_table(["option", "default", "allowed", "meaning"], rows)


def _default(option: Option) -> str:
    if option.default is None:
        return "must be given"
    return f"`{', '.join(option.default) if isinstance(option.default, tuple) else option.default}`"
