"""Functions of torch with full types, because torch's own type stubs leave their results unknown."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

_linalg = cast(Any, torch.linalg)


def ints(tensor: Tensor) -> list[int]:
    """Return the values of an integer tensor [n]."""
    return cast(Any, tensor).tolist()


def floats(tensor: Tensor) -> list[float]:
    """Return the values of a tensor [n] of floating-point numbers."""
    return cast(Any, tensor).tolist()


def distinct(tensor: Tensor) -> list[int]:
    """Return the distinct values of an integer tensor, ascending."""
    return cast(Any, tensor).unique().tolist()


def ranks(tensor: Tensor) -> Tensor:
    """Return the place of each value among the distinct values, ascending."""
    return cast(Any, torch).unique(tensor, return_inverse=True)[1]


def norm(tensor: Tensor) -> float:
    """Return the square root of the sum of squares."""
    return float(cast(Any, tensor).norm())


def unflatten(tensor: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return the tensor with one dimension split into several."""
    return cast(Any, tensor).unflatten(dim, tuple(sizes))


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, ascending, and the eigenvectors of symmetric matrices."""
    return _linalg.eigh(matrices)


def eigvalsh(matrices: Tensor) -> Tensor:
    """Return the eigenvalues of symmetric matrices, ascending."""
    return _linalg.eigvalsh(matrices)


def cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factors, and for each matrix a number that is not 0 if it has none."""
    return _linalg.cholesky_ex(matrices)


def cholesky_in_place(matrix: Tensor) -> int:
    """Put the Cholesky factor L into the lower triangle of a row-major matrix; return a number, not 0 if it has none.

    Only that triangle is read, and no memory is taken: LAPACK works on columns, and those of the transpose are rows.
    """
    columns, failed = matrix.mT, torch.empty((), dtype=torch.int32, device=matrix.device)
    _linalg.cholesky_ex(columns, upper=True, out=(columns, failed))
    return int(failed)


def solve_factored(factor: Tensor, right: Tensor) -> Tensor:
    """Return (L L^T)^-1 R of L in the lower triangle of `factor`; unlike cholesky_solve, without a copy of it."""
    return _linalg.solve_triangular(factor.mT, _linalg.solve_triangular(factor, right, upper=False), upper=True)
