"""Packing of several experts and roles in one tensor, described by facts that serve reading and writing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

from torch import Tensor

from mergemoe.moe.layout_types import StackingFacts
from mergemoe.moe.typed_torch import unflatten


@dataclass(frozen=True)
class Stacking:
    """One role of E experts inside a tensor that may hold others, too.

    part, parts: which of several roles joined along the neurons, as up is the second of gate and up.
    interleaved: they alternate neuron by neuron; otherwise each is one block.
    transposed: an expert's matrix lies transposed.
    flat: the experts lie one after the other in two dimensions, [E * I, H].
    """

    part: int = 0
    parts: int = 1
    interleaved: bool = False
    transposed: bool = False
    flat: bool = False

    def facts(self) -> StackingFacts:
        """Return the fields as a layout has them."""
        return cast(StackingFacts, asdict(self))

    def view(self, tensor: Tensor, experts: int) -> Tensor:
        """Return the role in its own shape [E, ., .], a bias [E, .]: a view, so writing to it writes the tensor."""
        if self.flat:
            tensor = unflatten(tensor, 0, (experts, -1))
        if self.transposed:
            tensor = tensor.transpose(1, 2)
        if self.parts == 1:
            return tensor
        return tensor[:, self.part :: self.parts] if self.interleaved else tensor.chunk(self.parts, 1)[self.part]

    def shape(self, role: Sequence[int]) -> list[int]:
        """Return the shape of the whole tensor around a role of shape [E, ., .] or [E, .]."""
        experts, rows, *columns = role
        whole = [rows * self.parts, *columns]
        if self.transposed:
            whole.reverse()
        return [experts * whole[0], *whole[1:]] if self.flat else [experts, *whole]
