"""GPTQ (arXiv 2210.17323): quantize a matrix column by column, and correct the columns that follow.

    min over W' on the grid of sum_x || (W' - W) x ||^2,    H = sum_x x x^T

Once column i is rounded, the least that the others can make of its error is W_rest -= e_i U_i,rest / U_ii, with
H^-1 = U^T U, U upper triangular. The grid of a group is fitted when its first column is reached, to the weights as they
are then.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mergemoe.moe.finite import check_finite
from mergemoe.moe.typed_torch import cholesky
from mergemoe.quantization.grids import Grid, fitted_grid


class Corrected(NamedTuple):
    """A quantized matrix [R, C]; what each weight was, with all corrections, before it was rounded; the grids.

    `grid` has a scale, a zero and the bits of each row and group [R, C / group].
    """

    weights: Tensor
    before: Tensor
    grid: Grid

    def rows(self, which: slice) -> "Corrected":
        """Return some rows of matrices [M, R, C]."""
        return Corrected(self.weights[:, which], self.before[:, which], Grid(*(part[:, which] for part in self.grid)))


def gptq(weights: Tensor, gram: Tensor, bits: int | Tensor, group: int, damping: float) -> "Corrected":
    """Return the quantized matrix, in float64, and its grids.

    Args:
        weights: W [R, C].
        gram: H [C, C] of the matrix's inputs; a column without any is rounded to the nearest value.
        bits: of a weight, in all rows or in each [R].
        group: columns that share a grid.
        damping: added to the diagonal of H, as a share of its mean.
    """
    w, h = weights.double().clone(), gram.double().clone()
    unused = h.diagonal() == 0
    h.diagonal()[unused] = 1.0
    h.diagonal().add_(damping * h.diagonal().mean())
    check_finite("sums over the inputs of experts", h)
    upper = cholesky(torch.cholesky_inverse(cholesky(h)[0]))[0].mT
    before, grids = torch.empty_like(w), list[Grid]()
    for start in range(0, w.shape[1], group):
        end = start + group
        grid = fitted_grid(w[:, start:end], bits)
        grids.append(grid)
        errors = torch.zeros_like(w[:, start:end])
        for i in range(start, end):
            before[:, i] = w[:, i]
            rounded = grid.nearest(w[:, i])
            errors[:, i - start] = (w[:, i] - rounded) / upper[i, i]
            w[:, i] = rounded
            w[:, i + 1 : end] -= errors[:, i - start, None] * upper[i, i + 1 : end]
        w[:, end:] -= errors @ upper[start:end, end:]
    return Corrected(w, before, Grid(*(torch.stack(parts, 1) for parts in zip(*grids, strict=True))))
