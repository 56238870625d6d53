"""Types of the record of a quantization, the JSON artifact of one layer beside its weights."""

from mergemoe.moe.records import ChangeRecord


class QuantizeRecord(ChangeRecord):
    """The quantization of one layer: also the bits of a weight, and the bytes of all experts."""

    bits: float
    bytes: int


class LayerQuantize(QuantizeRecord):
    """The artifact of stage quantize, beside the quantized weights."""

    layer: int
