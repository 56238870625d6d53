"""The values that a quantized weight can have: a scale and a zero of each group of a row, and 2^b steps."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHRINKS = [1 - step / 40 for step in range(21)]  # of a group's range, tried for the least squared error


class Grid(NamedTuple):
    """s (q - z) for q in 0 .. 2^b - 1, in each row: `scale` s [R], stored in 16 bits, `zero` z [R], `bits` b [R]."""

    scale: Tensor
    zero: Tensor
    bits: Tensor

    def nearest(self, weights: Tensor) -> Tensor:
        """Return the nearest values of weights [R] or [R, n]."""
        rows = (..., *([None] * (weights.ndim - self.scale.ndim)))
        scale, zero, most = self.scale[rows], self.zero[rows], 2 ** self.bits[rows] - 1
        steps = ((weights / scale).round() + zero).clamp(min=0).minimum(most.to(weights))
        return (steps - zero) * scale


def fitted_grid(weights: Tensor, bits: int | Tensor) -> Grid:
    """Return the grid of each row of one group [R, n] whose nearest values have the least squared error.

    `bits` are those of all rows, or of each [R].

    The ends of a row's range, which has 0 in it, are pulled together by each of SHRINKS.
    """
    bits = torch.as_tensor(bits, device=weights.device).expand(len(weights))
    steps = (2**bits - 1).to(weights)
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    grids, errors = list[Grid](), list[Tensor]()
    for shrink in SHRINKS:
        scale = (shrink * (high - low) / steps).half().double()
        scale = scale.where(scale > 0, torch.ones_like(scale))
        grids.append(Grid(scale, (-shrink * low / scale).round().clamp(min=0).minimum(steps), bits))
        errors.append((grids[-1].nearest(weights) - weights).square().sum(1))
    best = torch.stack(errors).argmin(0)[None]
    scale, zero = (torch.stack(part).gather(0, best)[0] for part in ([g.scale for g in grids], [g.zero for g in grids]))
    return Grid(scale, zero, bits)


def rounded_blocks(weights: Tensor, format: str) -> Tensor:
    """Return weights [..., n] in float32, each at the nearest value of a format of GGUF, as the package gguf has it."""
    import gguf  # only a job that rounds needs it

    kind = gguf.GGMLQuantizationType[format]
    numbers = weights.float().cpu().numpy()
    rows = np.ascontiguousarray(numbers.reshape(-1, numbers.shape[-1]))
    found = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
    return torch.tensor(found.reshape(numbers.shape), device=weights.device)
