"""The neurons worth keeping: features that are picked from a group's pool, never averaged.

With T2 = T3 = S, a 0/1 matrix that picks I' of the |C| I neurons of a group, S(act(W_G x) * (W_U x)) is exactly what
the merged expert computes, so choosing S is subset selection. Neurons are taken one by one, each time the one that
removes most of the remaining routed output (orthogonal least squares); only the diagonal and the cross products are
deflated, as in a pivoted Cholesky factorization.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergemoe.leastsquares import Moments
from mergemoe.problem import Group, Problem
from mergemoe.routed import group_sums
from mergemoe.weights import Experts

GRAM_BYTES = 1 << 30  # of the pools' sums that are held at once
GONE = 1e-10  # a neuron with less than this share of its energy left is a combination of those taken


def selected(problem: Problem, groups: Sequence[Group], width: int) -> list[Experts]:
    """Return, per group, an expert of `width` neurons of its members, each with its own down-projection column.

    A group of one expert at its full width is that expert, to the bit.
    """
    found = [pool(problem, group) for group in groups]
    larger = [place for place, expert in enumerate(found) if expert.up.shape[1] > width]
    for place, moments in zip(larger, pooled_sums(problem, [groups[i] for i in larger]), strict=True):
        found[place] = keep_neurons(found[place], best_neurons(moments, found[place], width)[0])
    return found


def pooled_sums(problem: Problem, groups: Sequence[Group]) -> Iterator[Moments]:
    """Yield routed.group_sums of each group's pool over the fitted tokens, in passes that hold GRAM_BYTES at once."""
    for batch in passes(problem, groups):
        yield from group_sums(problem, batch, [pool(problem, each) for each in batch], heldout=False)


def passes(problem: Problem, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups whose pools' sums are held at once: as many as fill GRAM_BYTES."""
    width = problem.experts.up.shape[1]
    batch: list[Group] = []
    held = 0
    for place, group in enumerate(groups):
        batch.append(group)
        held += 8 * (len(group.members) * width) ** 2
        if held > GRAM_BYTES or place == len(groups) - 1:
            yield batch
            batch, held = [], 0


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
        down=parts.down.transpose(0, 1).flatten(1)[None],
        up_bias=wide(parts.up_bias),
        gate_bias=wide(parts.gate_bias),
        down_bias=None if parts.down_bias is None else group.mean(parts.down_bias),
        norm=None if parts.norm is None else parts.norm[:1],
    )


def keep_neurons(expert: Experts, neurons: Tensor) -> Experts:
    """Return one expert (E = 1) with some of its neurons."""
    kept = {role: part[:, neurons] for role, part in expert.roles().items() if role not in {"down", "down_bias"}}
    return Experts(**kept, down=expert.down[:, :, neurons], down_bias=expert.down_bias, norm=expert.norm)


def best_neurons(moments: Moments, expert: Experts, width: int) -> tuple[Tensor, float]:
    """Return the numbers of `width` neurons, ascending, and the squared error that they leave, solved at ridge 0.

    Where fewer have a residual left, the rest are those of the largest energy, sum_x (t phi)^2 ||w_D||^2. Ties go to
    the lower number.

    Args:
        moments: routed.group_sums of the pool.
        expert: the pool.
        width: I'.
    """
    gram, cross, error = moments.gram, moments.cross.clone(), moments.energy
    if expert.down_bias is not None:
        gram, cross, error = _without_constant(moments)
    start, left = gram.diagonal().clone(), gram.diagonal().clone()
    columns = gram.new_zeros(len(gram), width)
    taken = torch.zeros(len(gram), dtype=torch.bool, device=gram.device)
    for step in range(width):
        score = torch.where(taken | (left <= GONE * start), -1.0, cross.square().sum(0) / left)
        best = int(score.argmax())
        if score[best] <= 0:
            energy = torch.where(taken, -1.0, start * expert.down[0].double().square().sum(0))
            taken[energy.argsort(descending=True, stable=True)[: width - step]] = True
            break
        column = (gram[:, best] - columns[:, :step] @ columns[best, :step]) / left[best].sqrt()
        cross -= (cross[:, best] / left[best].sqrt())[:, None] * column
        left -= column.square()
        columns[:, step] = column
        taken[best] = True
        error -= float(score[best])
    return torch.where(taken)[0], max(error, 0.0)


def _without_constant(moments: Moments) -> tuple[Tensor, Tensor, float]:
    """Return the sums and the energy that are left when the last feature, a bias, has explained what it can."""
    last, cross = moments.gram[-1], moments.cross[:, -1:]
    if last[-1] == 0:
        return moments.gram[:-1, :-1], moments.cross[:, :-1].clone(), moments.energy
    column = last[:-1] / last[-1]
    left = moments.gram[:-1, :-1] - column[:, None] * last[:-1], moments.cross[:, :-1] - cross * column
    return *left, moments.energy - float(cross.square().sum() / last[-1])
