"""Types of the record of a quantization, the JSON artifact of one layer beside its weights."""

from typing import TypedDict

from mergemoe.moe.records import ByPart, TokenCounts


class QuantizeRecord(TypedDict):
    """The quantization of one layer: its errors before and after, the bits of a weight, the bytes of all experts."""

    experts: int
    kept: int
    width: int
    tokens: TokenCounts
    start_error: ByPart
    output_error: ByPart
    bits: float
    bytes: int


class LayerQuantize(QuantizeRecord):
    """The artifact of stage quantize, beside the quantized weights."""

    layer: int
