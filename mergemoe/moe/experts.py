"""The weights of a layer's experts as stacked tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Experts:
    """The weights of E experts; a part that their family lacks is None.

    Shapes: up and gate [E, I, H], down [E, H, I], their biases [E, I], [E, I], [E, H]; norm [E, H] scales each
    expert's output before it is normalized, and is one and the same for all of them.
    """

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None
    norm: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of experts E."""
        return len(self.up)

    def __getitem__(self, which: Sequence[int] | Tensor | slice) -> "Experts":
        """Return some of the experts, in the order asked for."""
        return self.map(lambda matrices: matrices[which])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Experts":
        """Return experts whose every part is changed by one function of [E, ...]."""
        return Experts(**{name: change(part) for name, part in self._parts().items()})

    def roles(self) -> dict[str, Tensor]:
        """Return {role: matrices} of what is each expert's own."""
        return {name: part for name, part in self._parts().items() if name != "norm"}

    def _parts(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}


def joined(parts: Sequence[Experts]) -> Experts:
    """Return the experts of all parts one after the other."""
    return Experts(**{role: torch.cat([part.roles()[role] for part in parts]) for role in parts[0].roles()})


def down_of(expert: Experts) -> Tensor:
    """Return the down-projection of one expert, its bias as one more column: [H, P] in float64."""
    down = expert.down[0].double()
    return down if expert.down_bias is None else torch.cat([down, expert.down_bias[0, :, None].double()], 1)


def with_down(expert: Experts, down: Tensor) -> Experts:
    """Return the expert with another down-projection [H, P], whose last column is the bias if there is one."""
    if expert.down_bias is None:
        return replace(expert, down=down[None])
    return replace(expert, down=down[None, :, :-1], down_bias=down[None, :, -1])
