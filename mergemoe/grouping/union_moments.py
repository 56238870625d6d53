"""The moments of the union of two groups, from the tokens of each group and the tokens of both.

A token uses the union of groups A and B with t = t_A + t_B and asks it for y = y_A + y_B. With all neurons phi of both

    G = sum t^2 phi phi^T = sum_A t_A^2 phi phi^T + sum_B t_B^2 phi phi^T + 2 sum_AB t_A t_B phi phi^T
    C = sum t y phi^T     = sum_A t_A y_A phi^T   + sum_B t_B y_B phi^T   + sum_AB (t_A y_B + t_B y_A) phi^T

over the tokens that chose A, B, and both. The last are few, and a group's own blocks serve all of its unions. Outputs
are sums of neurons, y_A = W_A q_A with q_A = g_j(x) phi_j(x) for every member j, so C needs no products of outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergemoe.grouping.expert_features import Chunk, ExpertFeatures
from mergemoe.merging.group_moments import SLOTS, batches, gathered
from mergemoe.merging.least_squares import Moments
from mergemoe.merging.neuron_selection import pool
from mergemoe.moe.expert_forward import Which, features, with_one
from mergemoe.moe.experts import joined
from mergemoe.moe.problem import Group, Problem
from mergemoe.moe.typed_torch import unflatten


class Side:
    """Groups of one size, their pools, and the W [G, H, Q] of y = W q, in the dtype of products."""

    def __init__(self, problem: Problem, groups: Sequence[Group], dtype: torch.dtype):
        """Take the groups."""
        self.problem, experts = problem, problem.experts
        self.pools = joined([pool(problem, group) for group in groups])
        self.members = torch.tensor([group.members for group in groups], device=experts.up.device)  # [G, c]
        self.down = self.pools.down.to(dtype)
        if experts.down_bias is not None:
            self.down = torch.cat([self.down, experts.down_bias[self.members].mT.to(dtype)], 2)

    def neurons(self, chunk: Chunk, rows: Tensor, which: Which) -> Tensor:
        """Return phi [b, n, P] of tokens [b or 1, n], with a last one if there is a down bias."""
        if chunk.hidden is None:
            phi = chunk.of(self.members[which], rows)
        else:
            phi = features(gathered(chunk.hidden, rows), self.pools, which, self.problem.act)
        return with_one(phi, self.pools).to(self.down)

    def weighted(self, phi: Tensor, g: Tensor) -> Tensor:
        """Return q [b, n, Q] of phi [b, n, P] and the members' weights g [b, n, c]; those of biases are g itself."""
        wide = unflatten(phi[..., : self.pools.up.shape[1]], -1, (g.shape[-1], -1))
        q = (wide * g[..., None]).flatten(-2)
        return q if self.pools.down_bias is None else torch.cat([q, g], -1)


def union_sums(
    problem: Problem,
    experts: ExpertFeatures,
    one: Group,
    others: Sequence[Group],
    own: Moments,
    theirs: Moments,
) -> Moments:
    """Return, stacked, group_moments.group_sums over the fitted tokens of the union of one group with each of several.

    The neurons are those of the other, then those of `one`.

    Args:
        problem: the layer.
        experts: its features.
        one: a group.
        others: groups of one size, none of whose members is in `one`.
        own: group_moments.group_sums of the pool of `one`.
        theirs: those of the others.
    """
    a, b = (Side(problem, groups, experts.dtype) for groups in (others, [one]))
    left = a.pools.up.shape[1]  # the others' neurons; a bias is counted once, with `one`
    sums = _beside(theirs, own, left)
    aa, ab, bb = sums.gram[:, :left, :left], sums.gram[:, :left, left:], sums.gram[:, left:, left:]
    by_a, by_b = (ab.new_zeros(len(others), side.down.shape[2], p) for side, p in ((a, bb.shape[2]), (b, left)))
    for chunk in experts.chunks():
        g = chunk.weights.to(experts.dtype)
        g_a, g_b = g[:, a.members], g[:, b.members[0]]  # [n, G, c], [n, c']
        in_a, in_b = (g_a != 0).any(2), (g_b != 0).any(1)
        rows, weights = torch.where(in_b)[0][None], g_b[in_b][None]
        phi, t = b.neurons(chunk, rows, [0]), weights.sum(2, keepdim=True)
        most = max(1, SLOTS // max(1, rows.shape[1]))
        for few in (slice(start, start + most) for start in range(0, len(others), most)):
            f = t * a.neurons(chunk, rows, few)[..., :left]
            aa[few] += f.mT @ f
            ab[few] += f.mT @ (t * phi)
            by_b[few] += b.weighted(phi, weights).mT @ f
        for which, rows, weights, _ in _each(in_a, g_a, g_b):
            phi, t = a.neurons(chunk, rows, which), weights.sum(2, keepdim=True)
            f = t * b.neurons(chunk, rows, [0])
            bb[which] += f.mT @ f
            ab[which] += (t * phi[..., :left]).mT @ f
            by_a[which] += a.weighted(phi, weights).mT @ f
        both = in_a & in_b[:, None]
        for which, rows, weights, own_weights in _each(both, g_a, g_b):
            phi_a, phi_b = a.neurons(chunk, rows, which), b.neurons(chunk, rows, [0])
            y_a, y_b = a.weighted(phi_a, weights) @ a.down[which].mT, b.weighted(phi_b, own_weights) @ b.down.mT
            t_a, t_b = (part.sum(2, keepdim=True) for part in (weights, own_weights))
            phi = torch.cat([phi_a[..., :left], phi_b], 2)
            sums.gram[which] += (2 * t_a * t_b * phi).mT @ phi
            sums.cross[which] += (t_a * y_b + t_b * y_a).mT @ phi
            sums.energy[which] += 2 * (y_a * y_b).sum((1, 2))
        sums.tokens -= both.sum(0)
    sums.gram[:, left:, :left] = ab.mT
    sums.cross[..., :left] += b.down.double() @ by_b
    sums.cross[..., left:] += a.down.double() @ by_a
    return sums


def _each(used: Tensor, g_a: Tensor, g_b: Tensor) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Yield batches of others with the numbers [b, T] of their tokens and the weights there, 0 in padded slots."""
    for batch in batches(used):
        others = torch.tensor(batch.which, device=used.device)[:, None]
        real = batch.real[..., None]
        yield batch.which, batch.rows, g_a[batch.rows, others] * real, g_b[batch.rows] * real


def _beside(theirs: Moments, own: Moments, left: int) -> Moments:
    """Return the sums of both, as far as they are the same in every union."""
    hidden_size, right = own.cross.shape[1:]
    sums = Moments.zeros(left + right, hidden_size, own.gram.device, len(theirs.gram))
    sums.gram[:, :left, :left], sums.gram[:, left:, left:] = theirs.gram[:, :left, :left], own.gram
    sums.cross[..., :left], sums.cross[..., left:] = theirs.cross[..., :left], own.cross
    return replace(sums, energy=theirs.energy + own.energy, tokens=theirs.tokens + own.tokens)
