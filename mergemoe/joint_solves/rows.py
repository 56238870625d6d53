"""The rows of the down-projections that are solved at once: each is a problem of its own."""

from dataclasses import dataclass

from torch import Tensor

from mergemoe.errors import UserError

VECTORS = 8  # of the size of the rows that are solved at once


@dataclass(frozen=True)
class Rows:
    """Some of the layer's H outputs, or of their mixtures S [s, H] if there are `mixtures`."""

    span: slice
    mixtures: Tensor | None = None

    def of(self, y: Tensor) -> Tensor:
        """Return these [..., h] of the outputs [..., H]."""
        return y[..., self.span] if self.mixtures is None else y @ self.mixtures[self.span].T.to(y.dtype)

    @property
    def name(self) -> str:
        """Return a name for files."""
        return f"{'rows' if self.mixtures is None else 'mixtures'}_{self.span.start:05d}"


def bytes_needed(rows: int, width: int, groups: int) -> int:
    """Return the bytes that a solve of so many rows holds besides the experts, the solution and the features."""
    return 8 * groups * width * (width + 2 + VECTORS * rows)


def slabs(outputs: int, width: int, groups: int, memory: float, mixtures: Tensor | None = None) -> list[Rows]:
    """Return all H outputs, or their mixtures, in the parts that are solved at once.

    Raises:
        UserError: if the memory, in GB, is too small for one.
    """
    fixed, one = bytes_needed(0, width, groups), bytes_needed(1, width, groups)
    rows = outputs if mixtures is None else len(mixtures)
    most = min(rows, int((memory * 1e9 - fixed) // (one - fixed)))
    if most < 1:
        raise UserError(
            f"`memory: {memory:g}` is too little for a joint solve of {groups} experts of {width} neurons: one output "
            f"at a time takes {one / 1e9:.2g} GB. Raise `memory`, or keep fewer experts or neurons"
        )
    parts = -(-rows // most)
    ends = [rows * i // parts for i in range(parts + 1)]
    return [Rows(slice(start, end), mixtures) for start, end in zip(ends, ends[1:], strict=False)]
