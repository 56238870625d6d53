"""The layer's least squares token by token: routed features of the groups, target and output.

A token x uses group i with t_i(x) = sum_{j in C_i} g_j(x), so the layer is asked for

    sum_i t_i(x) (W_i p_i(x) + b_i)  instead of  sum_j g_j(x) E_j(x)

where p_i(x) are the features of the merged expert i. Its bias b_i is the weight of one more feature, constant 1. If the
family has a norm after the down-projection, it is left out of both sides: least squares sees the linear part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import features, linear_output, with_one
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.moe.tokens import Tokens


class Part(NamedTuple):
    """The tokens that use a group: numbers [r], weights t [r] and features p [r, P], the last 1 if there is a bias."""

    rows: Tensor
    shares: Tensor
    features: Tensor

    def weighted(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return t(x) p(x) [r, P]."""
        return self.features.to(dtype) * self.shares.to(dtype)[:, None]


def layer_parts(tokens: Tokens, problem: Problem, experts: Sequence[Experts]) -> list[Part]:
    """Return, per group, the tokens that use it."""
    shares = problem.shares(tokens)
    parts: list[Part] = []
    for place, expert in enumerate(experts):
        rows = torch.where(shares[:, place] != 0)[0]
        own = with_one(features(tokens.hidden[rows], expert, 0, problem.act), expert)
        parts.append(Part(rows, shares[rows, place], own))
    return parts


def layer_features(tokens: Tokens, problem: Problem, experts: Sequence[Experts]) -> list[tuple[Tensor, Tensor]]:
    """Return, per group, the tokens that use it and their routed features."""
    return [(part.rows, part.weighted()) for part in layer_parts(tokens, problem, experts)]


def layer_target(tokens: Tokens, problem: Problem) -> Tensor:
    """Return Y = sum_j g_j(x) E_j(x) [n, H] in float64, under the original routing even if another one is used.

    expert_forward.shared_output is the same sum in the dtype of x, with the norm that least squares leaves out.
    """
    g = problem.routing_weights(tokens)
    y = torch.zeros(*tokens.hidden.shape, dtype=torch.float64, device=tokens.hidden.device)
    for expert in range(len(problem.experts)):
        rows = torch.where(g[:, expert] != 0)[0]
        part = linear_output(tokens.hidden[rows], problem.experts, expert, problem.act)
        y[rows] += g[rows, expert, None].double() * part.double()
    return y


def layer_output(parts: Sequence[tuple[Tensor, Tensor]], down: Tensor, tokens: int) -> Tensor:
    """Return W P [n, H] of the groups' features and their down-projections side by side, `down` [H, M P]."""
    y = down.new_zeros(tokens, len(down))
    for (rows, p), own in zip(parts, torch.split(down, [p.shape[1] for _, p in parts], 1), strict=True):
        y[rows] += p @ own.T
    return y
