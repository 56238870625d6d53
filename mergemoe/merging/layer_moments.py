"""The moments of a layer's joint least squares, with all groups side by side."""

import itertools
from collections.abc import Sequence

import torch

from mergemoe.merging.layer_output import layer_features, layer_target
from mergemoe.merging.least_squares import Moments
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.problem import Problem


def layer_sums(problem: Problem, experts: Sequence[Experts], heldout: bool) -> Moments:
    """Return the sums of all groups' routed features side by side, and of the layer's routed output.

    A token touches few groups, so only the blocks of groups that a chunk's tokens share are computed.
    """
    widths = [len(down_of(expert)[0]) for expert in experts]
    ends = list(itertools.accumulate(widths))
    spans = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    sums = Moments.zeros(ends[-1], problem.experts.down.shape[1], problem.experts.down.device)
    for tokens in problem.chunks(heldout):
        parts, y = layer_features(tokens, problem, experts), layer_target(tokens, problem)
        place = torch.full((len(experts), len(y)), -1, device=y.device)
        for i, (rows, _) in enumerate(parts):
            place[i, rows] = torch.arange(len(rows), device=y.device)
        for i, (rows, p) in enumerate(parts):
            sums.cross[0, :, spans[i]] += y[rows].T @ p
            for j in range(i + 1):
                both = torch.where((place[i] >= 0) & (place[j] >= 0))[0]
                sums.gram[0, spans[i], spans[j]] += p[place[i, both]].T @ parts[j][1][place[j, both]]
        sums.energy += y.square().sum()
        sums.tokens += len(y)
    sums.complete()
    return sums
