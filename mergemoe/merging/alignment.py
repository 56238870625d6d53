"""Alignment: reorder each expert's neurons to match the dominant expert's before a mean is taken."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Problem

_assign = cast(Any, optimize).linear_sum_assignment  # scipy has no type stubs


def aligned_mean(problem: Problem, groups: Sequence[Group]) -> list[Experts]:
    """Return the usage-weighted mean after each member's neurons were put in the order of the dominant one's.

    The permutation of a member maximizes sum_k <its neuron, the dominant one's neuron k> over gate, up and down
    (weight matching, solved exactly as an assignment; arXiv 2310.01334 with a gate). The order of the neurons of
    an expert means nothing, so this changes what a mean is, and no expert.
    """
    means: list[Experts] = []
    for group in groups:
        members = problem.experts[group.members]
        like = _neurons(members, group.dominant)
        orders = [_best_order(like @ _neurons(members, place).T) for place in range(len(group.members))]
        means.append(reordered(members, torch.stack(orders)).map(group.mean))
    return means


def _best_order(gain: Tensor) -> Tensor:
    """Return the columns [I] that rows 0, 1, ... take, each column once, at the largest sum of `gain` [I, I]."""
    _, order = _assign(gain.cpu().numpy(), maximize=True)
    return torch.as_tensor(order).to(gain.device)


def reordered(experts: Experts, orders: Tensor) -> Experts:
    """Return experts whose neuron k is what neuron orders[e, k] was; orders [E, I]."""

    def rows(matrices: Tensor) -> Tensor:
        return torch.stack([matrix[order] for matrix, order in zip(matrices, orders, strict=True)])

    changed = {role: rows(part) for role, part in experts.roles().items() if role not in {"down", "down_bias"}}
    return Experts(**changed, down=rows(experts.down.mT).mT, down_bias=experts.down_bias, norm=experts.norm)


def _neurons(experts: Experts, place: int) -> Tensor:
    """Return each neuron of an expert as one row: its gate, up and down weights, in float64."""
    parts = [experts.up[place], experts.down[place].T]
    return torch.cat(parts if experts.gate is None else [experts.gate[place], *parts], 1).double()
