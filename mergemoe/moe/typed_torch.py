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
