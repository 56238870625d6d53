"""Stop where a number on the way to the merged experts is NaN or infinite: everything behind it would be, too."""

import torch
from torch import Tensor

from mergemoe.errors import UserError


def check_finite(what: str, *numbers: Tensor | float) -> None:
    """Check that all numbers are finite.

    Args:
        what: what they are, in the plural.
        numbers: the numbers.

    Raises:
        UserError: if one is NaN or infinite.
    """
    if not all(_is_finite(torch.as_tensor(part)) for part in numbers):
        raise UserError(
            f"{what} are NaN or infinite: they exceed the range of float32, or of the dtype in which weights are "
            "stored. Hidden states or weights of this layer are very large, which usually means a damaged checkpoint; "
            "if it computes well otherwise, leave this layer out (`layers`)"
        )


def _is_finite(numbers: Tensor) -> bool:
    """Tell it from the smallest and the largest, NaN if one is: isfinite copies, and Gram matrices are large."""
    return not numbers.numel() or all(bool(bound.isfinite()) for bound in numbers.aminmax())


def stored(what: str, made: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in the dtype in which they are stored.

    Raises:
        UserError: if one is NaN or infinite, before or in that dtype.
    """
    check_finite(what, made)
    found = made.to(dtype)
    if not bool(found.isfinite().all()):
        raise UserError(
            f"{what} reach {float(made.abs().max()):.2g}, beyond the range of {str(dtype).removeprefix('torch.')}, in "
            "which weights are stored. A least squares without a ridge finds such weights for features that depend on "
            "one another: raise `ridge`, or leave this layer out (`layers`)"
        )
    return found
