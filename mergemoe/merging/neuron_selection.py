"""Neuron selection: a merged expert keeps the best neurons of its group's pool; none is averaged.

The pool holds the |C| I neurons of the group C. Let S be the 0/1 matrix that picks I' of them. With T2 = T3 = S the
merged expert computes exactly S(act(W_G x) * (W_U x)), so choosing S is subset selection. Neurons are taken one by one,
each time the one that removes most of the remaining routed output (orthogonal least squares). Only the diagonal and the
cross products are deflated, as in a pivoted Cholesky factorization.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.least_squares import Moments, add_lower, mirror
from mergemoe.moe.experts import Experts, joined
from mergemoe.moe.layer_sizes import GRAM_BYTES
from mergemoe.moe.problem import Group, Problem

GONE = 1e-8  # a neuron with less than this share of its energy left is a combination of those taken, up to rounding
PANEL = 32  # neurons that are taken before the sums are deflated


def selected_experts(problem: Problem, groups: Sequence[Group], width: int) -> list[Experts]:
    """Return, per group, an expert of `width` neurons of its members, each with its own down-projection column.

    A group of one expert at its full width is that expert, to the bit.
    """
    larger = [group for group in groups if len(group.members) * problem.experts.up.shape[1] > width]
    found: dict[int, Experts] = {}
    for batch in passes(problem, larger):
        each = [pool(problem, group) for group in batch]
        pools = joined(each)
        neurons, _ = best_neurons(group_sums(problem, batch, pools, heldout=False), pools.down, width)
        found |= {g.number: keep_neurons(own, kept) for g, own, kept in zip(batch, each, neurons, strict=True)}
    return [found.get(group.number) or pool(problem, group) for group in groups]


def passes(problem: Problem, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups whose pools' sums are held at once: of one size, as many as fill GRAM_BYTES."""
    for size, equal in itertools.groupby(sorted(groups, key=_size), _size):
        most = max(1, GRAM_BYTES // (8 * (size * problem.experts.up.shape[1]) ** 2))
        alike = list(equal)
        yield from (alike[i : i + most] for i in range(0, len(alike), most))


def pool(problem: Problem, group: Group) -> Experts:
    """Return all neurons of a group as one expert, |C| I wide; a down bias becomes the usage-weighted mean."""
    parts = problem.experts[group.members]

    def wide(matrices: Tensor | None) -> Tensor | None:
        return None if matrices is None else matrices.flatten(0, 1)[None]

    up = wide(parts.up)
    assert up is not None
    return Experts(
        up=up,
        gate=wide(parts.gate),
        down=pooled_down(problem, group),
        up_bias=wide(parts.up_bias),
        gate_bias=wide(parts.gate_bias),
        down_bias=None if parts.down_bias is None else group.mean(parts.down_bias),
        norm=None if parts.norm is None else parts.norm[:1],
    )


def pooled_down(problem: Problem, group: Group) -> Tensor:
    """Return the down-projection [1, H, |C| I] of a group's pool."""
    return problem.experts.down[group.members].transpose(0, 1).flatten(1)[None]


def keep_neurons(expert: Experts, neurons: Tensor) -> Experts:
    """Return one expert (E = 1) with some of its neurons."""
    kept = {role: part[:, neurons] for role, part in expert.roles().items() if role not in {"down", "down_bias"}}
    return Experts(**kept, down=expert.down[:, :, neurons], down_bias=expert.down_bias, norm=expert.norm)


def best_neurons(moments: Moments, down: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return `width` neurons [G, width], ascending, and the squared errors [G, width] left after each that was taken.

    The errors are those of solves at ridge 0, and what is taken first does not depend on `width`. Where fewer have a
    residual left, the rest are those of the largest energy, sum_x (t phi)^2 ||w_D||^2. Ties go to the lower number.

    Scores need of the cross sums C no more than C^T C: the output's size does not matter. Both it and the Gram are
    deflated PANEL by PANEL; within one, c_j = C_j - (U L^T)_j is known by Z = C^T U and N = U^T U.

    Args:
        moments: group_moments.group_sums of the pools.
        down: the pools' down-projections [G, H, P]; a feature more in the moments is that of the bias.
        width: I'.
    """
    gram, cross, error = _without_constant(moments) if moments.gram.shape[1] > down.shape[2] else _copied(moments)
    outer = torch.zeros_like(gram)
    for squares, own in zip(outer, cross, strict=True):
        add_lower(squares, own)
        mirror(squares)
    start = gram.diagonal(dim1=1, dim2=2).clone()
    taken, errors = torch.zeros_like(start, dtype=torch.bool), gram.new_empty(len(gram), width)
    each = torch.arange(len(gram), device=gram.device)
    for first in range(0, width, PANEL):
        size = min(PANEL, width - first)
        left, norms = (sums.diagonal(dim1=1, dim2=2).clone() for sums in (gram, outer))
        columns, products = gram.new_zeros(2, len(gram), size, start.shape[1])  # of L and Z, one in a row
        inner = gram.new_zeros(len(gram), size, size)  # N
        for step in range(size):
            score = torch.where(taken | (left <= GONE * start), 0.0, norms / left)
            gain, best = score.max(1)
            open_ = gain > 0  # a group that has run out takes no step
            scale = torch.where(open_, left[each, best].rsqrt(), 0.0)[:, None]
            factor, z = columns[:, :step], products[:, :step]
            at, n = factor[each, :, best], inner[:, :step, :step]
            column = scale * (gram[each, best] - _apply(factor, at))
            product = scale * (outer[each, best] - _apply(z, at))
            overlap = scale * (z[each, :, best] - _apply(n, at))
            norms -= column * (2 * (product - _apply(factor, overlap)) - column * gain[:, None])
            left -= column.square()
            columns[:, step], products[:, step] = column, product
            inner[:, step, :step] = inner[:, :step, step] = overlap
            inner[:, step, step] = gain
            taken[each, best] |= open_
            error -= gain
            errors[:, first + step] = error
        gram.baddbmm_(columns.mT, columns, alpha=-1)
        half = products - inner @ columns / 2
        outer.baddbmm_(half.mT, columns, alpha=-1).baddbmm_(columns.mT, half, alpha=-1)
    energy = start * down.double().square().sum(1)
    order = torch.where(taken, torch.inf, energy).argsort(dim=1, descending=True, stable=True)
    return order[:, :width].sort(1)[0], errors.clamp_min(0)


def _apply(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sums [G, P] of rows [G, k, P]; weights [G, k]."""
    return (weights[:, None] @ rows)[:, 0]


def _copied(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    return moments.gram.clone(), moments.cross, moments.energy.clone()


def _without_constant(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums and the energies that are left when the last feature, a bias, has explained what it can."""
    last, cross = moments.gram[:, -1], moments.cross[:, :, -1]
    share = torch.where(last[:, -1:] > 0, last / last[:, -1:], 0.0)
    explained = torch.where(last[:, -1] > 0, cross.square().sum(1) / last[:, -1], 0.0)
    gram = (moments.gram - share[:, :, None] * last[:, None])[:, :-1, :-1].contiguous()
    return gram, (moments.cross - cross[:, :, None] * share[:, None])[..., :-1], moments.energy - explained


def _size(group: Group) -> int:
    return len(group.members)
