"""The features of all experts on all fitted tokens, which every union of two groups needs some of.

A union's neurons work on the tokens of both groups, so an expert meets the tokens of every other. Its features are
computed once and kept in float32 if they have room, else for each union again.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import features
from mergemoe.moe.layer_sizes import features_fit
from mergemoe.moe.problem import Problem
from mergemoe.moe.typed_torch import unflatten


class Chunk(NamedTuple):
    """Tokens of a layer: their routing weights g [n, N], and their hidden states or the experts' features [N, n, I]."""

    weights: Tensor
    hidden: Tensor | None
    features: Tensor | None

    def of(self, members: Tensor, rows: Tensor) -> Tensor:
        """Return the kept features [b, T, c I] of experts [b, c], side by side, on tokens [b or 1, T]."""
        assert self.features is not None
        experts, tokens, width = self.features.shape
        places = (members * tokens)[:, :, None] + rows[:, None]
        found = self.features.view(experts * tokens, width).index_select(0, places.flatten())
        return unflatten(found, 0, places.shape).transpose(1, 2).flatten(2)


class ExpertFeatures:
    """The fitted tokens of a layer, chunk by chunk, again and again; unions take their products in `dtype`."""

    def __init__(self, problem: Problem, dtype: torch.dtype = torch.float64):
        """Take the layer."""
        self._problem, self.dtype = problem, dtype
        self._keeps = features_fit(len(problem.experts), problem.experts.up.shape[1], problem.reader.count())
        self._kept: list[Chunk] = []

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks in their order."""
        if self._kept:
            yield from self._kept
            return
        experts, kept = self._problem.experts, list[Chunk]()
        for tokens in self._problem.chunks(heldout=False):
            weights, x = self._problem.routing_weights(tokens), tokens.hidden
            if self._keeps:
                each = [features(x, experts, expert, self._problem.act) for expert in range(len(experts))]
                kept.append(Chunk(weights, None, torch.stack(each)))
            yield kept[-1] if self._keeps else Chunk(weights, x, None)
        self._kept = kept
