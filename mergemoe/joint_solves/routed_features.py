"""The routed features and the target of a layer, chunk by chunk, for passes that are made again and again."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergemoe.merging.layer_output import Part, layer_output, layer_parts, layer_target
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.problem import Problem
from mergemoe.moe.records import ByPart

Weighted = list[tuple[Tensor, Tensor]]  # as layer_output.layer_features


class RoutedFeatures:
    """P and Y of the fitted and the held-out tokens: kept if there is room, else computed in each pass.

    bytes: that it keeps; 0 if nothing is kept.
    """

    def __init__(self, problem: Problem, experts: Sequence[Experts], room: float):
        """Take the layer, one expert per group, and the bytes that may be kept."""
        self._problem, self._experts = problem, experts
        self.hidden, self.width = down_of(experts[0]).shape
        uses = min(problem.reader.top_k, len(experts))
        needed = len(problem.reader.held) * (uses * (4 * self.width + 12) + 8 * self.hidden)
        self.bytes = needed if needed <= room else 0
        self._kept: dict[bool, list[tuple[list[Part], Tensor]]] = {}

    def count(self, heldout: bool) -> int:
        """Return the number of tokens."""
        return self._problem.reader.count(heldout)

    def features(self, heldout: bool, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Weighted, int]]:
        """Yield, per chunk, each group's tokens and routed features, and the number of tokens."""
        if self.bytes:
            found = ((parts, len(y)) for parts, y in self.remembered(heldout))
        else:
            chunks = self._problem.reader.chunks(heldout, device=self._problem.experts.down.device)
            found = ((layer_parts(tokens, self._problem, self._experts), len(tokens.hidden)) for tokens in chunks)
        yield from ((_weighted(parts, dtype), count) for parts, count in found)

    def with_target(self, heldout: bool) -> Iterator[tuple[Weighted, Tensor]]:
        """Yield, per chunk, each group's tokens and routed features, and Y [n, H]."""
        found = self.remembered(heldout) if self.bytes else self._computed(heldout)
        yield from ((_weighted(parts), y) for parts, y in found)

    def remembered(self, heldout: bool) -> list[tuple[list[Part], Tensor]]:
        """Return the same, kept, with the weights apart."""
        if heldout not in self._kept:
            self._kept[heldout] = list(self._computed(heldout))
        return self._kept[heldout]

    def errors(self, down: Tensor) -> ByPart:
        """Return ||W P - Y||^2 / ||Y||^2 of the fitted and the held-out tokens, from no sums; None without any."""
        return {"fit": self._error(down, heldout=False), "heldout": self._error(down, heldout=True)}

    def _error(self, down: Tensor, heldout: bool) -> float | None:
        squared = energy = 0.0
        for parts, y in self.with_target(heldout):
            energy += float(y.square().sum())
            squared += float((y - layer_output(parts, down, len(y))).square().sum())
        return squared / energy if energy else None

    def _computed(self, heldout: bool) -> Iterator[tuple[list[Part], Tensor]]:
        for tokens in self._problem.chunks(heldout):
            yield layer_parts(tokens, self._problem, self._experts), layer_target(tokens, self._problem)


def _weighted(parts: Sequence[Part], dtype: torch.dtype = torch.float64) -> Weighted:
    return [(part.rows, part.weighted(dtype)) for part in parts]
