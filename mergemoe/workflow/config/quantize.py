"""Section quantize of params.yaml: one kind of quantization (`by`) and its options per named choice.

The keys, defaults, ranges and descriptions come from the tables in quantization/options.py.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from mergemoe.quantization.options import KINDS, TEXTS
from mergemoe.workflow.config import from_options
from mergemoe.workflow.config.base import Section, Threads


class Quantization(Section):
    """What every kind has."""

    by: str
    threads: Threads = 1


SECTIONS = {kind: from_options.section(Quantization, "by", kind, TEXTS[kind], KINDS[kind]) for kind in KINDS}

if TYPE_CHECKING:
    Quantize = Quantization
else:
    Quantize = Annotated[Union[tuple(SECTIONS.values())], Field(discriminator="by")]  # noqa: UP007
