"""The moments of all groups' least squares, from a few large matrix products.

The tokens of each group lie side by side, [b, T], padded to the longest of their batch. A padded slot repeats the
group's last token with weight 0, so it adds exact zeros. Groups are batched by their number of tokens, longest first; a
batch ends at SLOTS, or when more than PADDING of it would be empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergemoe.merging.least_squares import Moments
from mergemoe.moe.expert_forward import linear_output, weighted_features
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Problem
from mergemoe.moe.tokens import Tokens
from mergemoe.moe.typed_torch import ints, unflatten

SLOTS = 1 << 13  # of a batch, unless one group alone has more tokens in a chunk: tens of numbers per neuron and slot
PADDING = 1 / 8


@dataclass(frozen=True)
class Batch:
    """Tokens of some experts or groups; rows [b, T] numbers them, real [b, T] is False in padded slots."""

    which: list[int]
    rows: Tensor
    real: Tensor


def batches(used: Tensor) -> Iterator[Batch]:
    """Yield every token of every column of used [n, E] once; a column without tokens is in no batch."""
    rows, counts = torch.where(used.T)[1], used.sum(0)
    ends = counts.cumsum(0)
    for which in cut_batches(ints(counts)):
        count, end = counts[which, None], ends[which, None]
        slot = torch.arange(int(count[0]), device=used.device)
        yield Batch(which, rows[torch.minimum(end - count + slot, end - 1)], slot < count)


def cut_batches(counts: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of the counts above 0 in batches, descending; ties go to the lower place."""
    batch: list[int] = []
    held = 0
    for place in sorted((i for i, count in enumerate(counts) if count), key=lambda i: -counts[i]):
        slots = (len(batch) + 1) * counts[batch[0]] if batch else 0
        if slots > SLOTS or slots - held - counts[place] > PADDING * slots:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += counts[place]
    if batch:
        yield batch


def group_sums(
    problem: Problem,
    groups: Sequence[Group],
    merged: Experts,
    heldout: bool,
) -> Moments:
    """Return, stacked, the sums of P = t_i(x) p_i(x) and Y = sum_j g_j(x) E_j(x) per group over the tokens with a g_j.

    Args:
        problem: the layer.
        groups: one or more.
        merged: the expert of each group, whose features are p_i.
        heldout: whether over the held-out tokens or the fitted ones.
    """
    device = problem.experts.down.device
    width = merged.up.shape[1] + (merged.down_bias is not None)
    sums = Moments.zeros(width, problem.experts.down.shape[1], device, len(groups))
    member = torch.zeros(len(problem.experts), len(groups), dtype=torch.bool, device=device)
    for place, group in enumerate(groups):
        member[group.members, place] = True
    for tokens in problem.chunks(heldout):
        g = problem.routing_weights(tokens)
        t, works = g @ member.to(g), (g != 0).float() @ member.float() > 0
        slots = works.cumsum(0) - 1  # [n, G] the slot of a token among its group's
        for batch in batches(works):
            share = t.T[torch.tensor(batch.which, device=device)[:, None], batch.rows] * batch.real
            p = weighted_features(gathered(tokens.hidden, batch.rows), share, merged, batch.which, problem.act)
            sums.add(p, _target(problem, tokens, groups, g, batch, slots), batch.which)
        sums.tokens += works.sum(0)
    sums.complete()
    return sums


def _target(
    problem: Problem, tokens: Tokens, groups: Sequence[Group], g: Tensor, batch: Batch, slots: Tensor
) -> Tensor:
    """Return sum_j g_j(x) E_j(x) [b, T, H] in float64 of the groups of a batch; 0 in padded slots.

    layer_output.layer_target sums over the whole layer, one expert at a time; here a group has its own sum, and many
    experts share one product, so the last bits differ.
    """
    y = torch.zeros(*batch.rows.shape, problem.experts.down.shape[1], dtype=torch.float64, device=g.device)
    inside = [(place, group, j) for place, group in enumerate(batch.which) for j in groups[group].members]
    places, numbers, members = torch.tensor(inside, device=g.device).T[:, :, None]  # [3, c, 1]
    for part in batches(g[:, members[:, 0]] != 0):
        place, number, member = places[part.which], numbers[part.which], members[part.which]
        outputs = linear_output(gathered(tokens.hidden, part.rows), problem.experts, member[:, 0], problem.act).double()
        outputs *= (g[part.rows, member] * part.real)[..., None]
        slot = place * batch.rows.shape[1] + slots[part.rows, number]
        y.view(-1, y.shape[2]).index_add_(0, slot.flatten(), outputs.flatten(0, 1))
    return y


def gathered(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows of x, [b, T, H]; rows [b, T]."""
    return unflatten(x.index_select(0, rows.flatten()), 0, rows.shape)  # faster than x[rows]
