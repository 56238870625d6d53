"""The calibration tokens of one layer, in a file or in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergemoe.moe.typed_torch import distinct


@dataclass(frozen=True)
class Tokens:
    """Some tokens of a layer: hidden [n, H] in float32, index [n, K], weight [n, K], logits [n, N]."""

    hidden: Tensor
    index: Tensor
    weight: Tensor
    logits: Tensor


def dense_weights(index: Tensor, weight: Tensor, columns: int) -> Tensor:
    """Return [n, columns]: for each token and column, the sum of the weights of the choices that name the column.

    index and weight are [n, K]; the columns are experts, or groups of experts.
    """
    return weight.new_zeros(len(index), columns).scatter_add_(1, index, weight)


class Activations(ABC):
    """The calls of one layer's experts; a subclass stores the rows."""

    def __init__(self, held: Tensor, top_k: int):
        """Take [n] whether each token is held out, and the choices per token K."""
        self.held, self.top_k = held, top_k

    @abstractmethod
    def read(self, name: str, start: int, rows: int) -> Tensor:
        """Return some rows of hidden, expert_index, expert_weight, router_logits or sequence."""

    def count(self, heldout: bool = False) -> int:
        """Return the number of tokens of the fitted (or the held-out) sequences."""
        return int((self.held == heldout).sum())

    def heldout_sequences(self) -> int:
        """Return the number of held-out sequences."""
        return len(distinct(self.read("sequence", 0, len(self.held))[self.held]))

    def chunk_count(self, rows: int = 4096) -> int:
        """Return how many chunks of `rows` tokens there are at most."""
        return -(-len(self.held) // rows)

    def chunks(self, heldout: bool = False, rows: int = 4096, device: torch.device | str = "cpu") -> Iterator[Tokens]:
        """Yield the tokens of the fitted (or the held-out) sequences, at most `rows` at a time."""
        for start in range(0, len(self.held), rows):
            keep = self.held[start : start + rows] == heldout
            if keep.any():
                yield Tokens(
                    hidden=self.read("hidden", start, rows)[keep].float().to(device),
                    index=self.read("expert_index", start, rows)[keep].long().to(device),
                    weight=self.read("expert_weight", start, rows)[keep].float().to(device),
                    logits=self.read("router_logits", start, rows)[keep].float().to(device),
                )


class Remembered(Activations):
    """Tokens kept in memory, as hooks.Recorder gives them batch by batch."""

    def __init__(self, batches: Sequence[Mapping[str, Tensor]], heldout: Tensor):
        """Join the batches; heldout [S] says which sequences are never fitted on."""
        self.rows = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
        super().__init__(heldout.bool()[self.rows["sequence"].long()], self.rows["expert_index"].shape[1])

    def read(self, name: str, start: int, rows: int) -> Tensor:
        """Return some rows."""
        return self.rows[name][start : start + rows]
