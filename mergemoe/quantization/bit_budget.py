"""A budget of bits: how many each matrix of each expert of a layer gets, if their mean is given.

What b bits cost a matrix of expert i is measured: sum_x t_i(x)^2 ||E'_i(x) - E_i(x)||^2 over the fitted tokens, where
E' has this matrix alone at the nearest values of its grid. Costs are taken to add up. A further bit saves about three
quarters of a cost, so costs are convex, and a budget is best spent bit by bit, each where it saves the most.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import output
from mergemoe.moe.experts import Experts
from mergemoe.moe.layer_sizes import GRAM_BYTES
from mergemoe.moe.problem import Problem
from mergemoe.moe.typed_torch import unflatten
from mergemoe.quantization.blocks import FEWEST, MOST
from mergemoe.quantization.grids import fitted_grid


def spent_bits(problem: Problem, compact: Experts, roles: Sequence[str], mean: float, group: int) -> dict[str, Tensor]:
    """Return the bits [M] of each role's matrices, whose mean is at most `mean`.

    Args:
        problem: the layer with its calibration tokens.
        compact: its M experts; all matrices have as many numbers.
        roles: of the matrices.
        mean: bits of a weight; no matrix has more than one below or above the whole numbers around it.
        group: weights of a row that share a grid.
    """
    offered = range(max(FEWEST, math.floor(mean) - 1), min(MOST, math.ceil(mean) + 1) + 1)
    costs = rounding_costs(problem, compact, roles, offered, group)
    spent = offered[0] + cheapest_steps(costs.flatten(0, 1), math.floor(costs[..., 0].numel() * (mean - offered[0])))
    return dict(zip(roles, spent.view(len(compact), -1).T, strict=True))


def cheapest_steps(costs: Tensor, budget: int) -> Tensor:
    """Return how many steps [n] each of n costs [n, 1 + steps] is taken down, so that their sum is least.

    The sum is the least if costs are convex. Ties go to the lower row.
    """
    saved = (costs[:, :-1] - costs[:, 1:]).cummin(1)[0]  # no step before those that lead to it
    taken = torch.zeros(saved.numel(), dtype=torch.int64)
    taken[saved.flatten().argsort(descending=True, stable=True)[:budget]] = 1
    return taken.view_as(saved).sum(1)


def rounding_costs(
    problem: Problem, compact: Experts, roles: Sequence[str], offered: Sequence[int], group: int
) -> Tensor:
    """Return the costs [M, roles, offered] in float64 on the CPU: of each matrix with each number of bits."""
    costs = torch.zeros(len(compact), len(roles), len(offered), dtype=torch.float64)
    at_once = max(1, GRAM_BYTES // (4 * compact.up[0].numel() * len(roles) * len(offered)))
    for start in range(0, len(compact), at_once):
        which = range(start, min(start + at_once, len(compact)))
        rounded = {
            (expert, role, place): replace(compact[[expert]], **{role: _nearest(matrices[[expert]], bits, group)})
            for expert in which
            for role, matrices in compact.roles().items()
            if role in roles
            for place, bits in enumerate(offered)
        }
        for tokens in problem.chunks(heldout=False):
            shares = problem.shares(tokens)
            for expert in which:
                rows = torch.where(shares[:, expert] != 0)[0]
                x, t = tokens.hidden[rows], shares[rows, expert, None].double()
                y = output(x, compact, expert, problem.act).double()
                for number, role in enumerate(roles):
                    for place in range(len(offered)):
                        other = output(x, rounded[expert, role, place], 0, problem.act).double()
                        costs[expert, number, place] += float((t * (other - y)).square().sum())
    return costs


def _nearest(matrices: Tensor, bits: int, group: int) -> Tensor:
    rows = unflatten(matrices.double(), -1, (-1, group)).flatten(0, -2)
    return fitted_grid(rows, bits).nearest(rows).view_as(matrices).float()
