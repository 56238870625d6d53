"""Matrix products of numbers that have no more digits than bfloat16, on the processor's units for those.

Gate and up projections are such products where the capture is in bfloat16 and the weights are stored in bfloat16. Each
is exact in float32, so only the order of the sums differs from products in float32, which take several times as long.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor


def short_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x W^T [..., n, R] of x [..., n, C] and W [..., R, C], in float32 that holds numbers of bfloat16."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not has_units():
        return x @ w.mT
    settings = cast(Any, torch.backends).mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        return x @ w.mT
    finally:
        settings.fp32_precision = before


@functools.cache
def has_units() -> bool:
    """Tell whether the processor multiplies bfloat16 matrices."""
    processor = cast(Any, torch.cpu)
    return processor._is_amx_tile_supported() or processor._is_avx512_bf16_supported()
