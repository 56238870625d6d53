"""Quantized formats that fit the rows of an expert's matrices: a format's block must divide a row.

Rows of the gate and up projections have H numbers, those of the down projection I'. llama.cpp gives a matrix whose rows
are no multiple of 256 a format with blocks of 32 instead of a K-quant, and leaves it in 16 bits if 32 does not fit
either (src/llama-quant.cpp).
"""

from collections.abc import Iterable

from mergemoe.text_table import aligned_table

GGUF = {256: "K-quants", 32: "Q4_0 to Q8_0"}  # block -> formats
GROUPS = (32, 64, 128)  # sizes that GPTQ and AWQ are used with
HEAD = ["rows of", "numbers", "GGUF", "groups of GPTQ, AWQ"]


def formats_table(hidden: Iterable[int], widths: Iterable[tuple[str, int]]) -> str:
    """Return a table of the formats that rows fit.

    Args:
        hidden: H, of each model.
        widths: (what to call it, I') of each size of the down projection.
    """
    lengths = [*(("gate, up", length) for length in hidden), *widths]
    rows = [[name, str(length), *_fitting(length)] for name, length in dict.fromkeys(lengths)]
    return aligned_table([HEAD, *rows], "<><<")


def _fitting(length: int) -> tuple[str, str]:
    gguf = [formats for block, formats in GGUF.items() if length % block == 0]
    groups = [str(size) for size in GROUPS if length % size == 0]
    return ", ".join(gguf) or "F16 only", ", ".join(groups) or "none"
