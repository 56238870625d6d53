"""The table of quantizations: the options of each kind (`by` in section quantize), with their defaults and ranges.

params.yaml and docs/method.md take names, defaults, ranges and descriptions from here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergemoe.methods.options import Option
from mergemoe.quantization.blocks import BLOCKS, FEWEST, MOST
from mergemoe.reconstruction.options import LAYER

REST = Option(
    "format of GGUF of every other matrix, with embeddings and without routers; none: they stay as they are",
    default="none",
    words=("none", *BLOCKS),
)
ROUND = {"format": Option("block format of GGUF", words=tuple(BLOCKS))}
GPTQ = {
    "bits": Option(
        "of a weight; if not whole, the mean of a layer, spent where rounding costs most",
        at_least=FEWEST,
        at_most=MOST,
    ),
    "group": Option(
        "weights of a row that share a scale and a zero", default=32, at_least=8, at_most=65_536, whole=True
    ),
    "damping": Option("added to the Gram matrix, as a share of its mean diagonal", default=0.01, above=0),
}
DESCENT = {**GPTQ, **{name: option for name, option in LAYER.items() if name != "parts"}}
DESCENT["rate"] = replace(LAYER["rate"], default=0.05)  # many weights are near the middle of two values (docs/log.md)
KINDS = {"round": ROUND | {"rest": REST}, "gptq": GPTQ | {"rest": REST}, "descent": DESCENT | {"rest": REST}}
TEXTS = {
    "round": "every weight to the nearest value of a format of GGUF",
    "gptq": "GPTQ: one column after the other, the rest of a row corrected for its error on the calibration tokens",
    "descent": "GPTQ, then a descent to the layer's original output, whose gradients pass through the rounding",
}


def block(options: Mapping[str, Any]) -> int:
    """Return the number of weights that share a scale: it divides every row that is quantized."""
    return BLOCKS[options["format"]][0] if options["by"] == "round" else options["group"]


def weight_bits(options: Mapping[str, Any]) -> float:
    """Return the bits of a weight with its share of scales, of 16 bits, and zeros, of as many bits as a weight."""
    if options["by"] == "round":
        numbers, size = BLOCKS[options["format"]]
        return 8 * size / numbers
    return options["bits"] + (16 + options["bits"]) / options["group"]


def misfit(options: Mapping[str, Any], rows: Mapping[str, int]) -> str | None:
    """Return why rows cannot be quantized; None if they can.

    Args:
        options: of one choice, with `by`.
        rows: {what they are: the numbers of a row}.
    """
    size = block(options)
    for what, length in rows.items():
        if length % size:
            return (
                f"{what} of {length} numbers cannot be divided into blocks of {size}. Take another width "
                "(`width_multiple`), or a smaller `group`"
            )
    return None
