"""What a group really adds to the residual stream, and the sums that its least squares needs.

A token x uses group i with t_i(x) = sum_{j in C_i} g_j(x), so the merged expert is asked for

    t_i(x) (W_i p_i(x) + b_i)  instead of  sum_{j in C_i} g_j(x) E_j(x)

on the tokens that chose a member, and on no others. Its bias is the weight of one more feature, constant 1. A family's
norm after the down-projection is left out of both sides: least squares sees what is linear.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import Which, features, linear_output
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.moe.tokens import Tokens
from mergemoe.progress import track


def chosen(tokens: Tokens, members: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return which tokens chose a member [r], and the members' routing weights g there [r, |C|]."""
    g = torch.stack([(tokens.weight * (tokens.index == j)).sum(1) for j in members], 1)
    rows = torch.where((g != 0).any(1))[0]
    return rows, g[rows]


def target(x: Tensor, g: Tensor, problem: Problem, members: Sequence[int]) -> Tensor:
    """Return sum_j g_j(x) E_j(x) [r, H] in float64; x [r, H], g [r, |C|]."""
    y = torch.zeros(len(x), problem.experts.down.shape[1], dtype=torch.float64, device=x.device)
    for place, expert in enumerate(members):
        rows = torch.where(g[:, place] != 0)[0]
        part = linear_output(x[rows], problem.experts, expert, problem.act)
        y[rows] += g[rows, place, None].double() * part.double()
    return y


def routed_features(x: Tensor, t: Tensor, problem: Problem, experts: Experts, which: Which = 0) -> Tensor:
    """Return t(x) p(x) [r, P] in float64, with t(x) itself as the last column where there is a down bias; t [r].

    Of b experts side by side: x [b, r, H], t [b, r] give [b, r, P].
    """
    p = features(x, experts, which, problem.act).double()
    p = torch.cat([p, torch.ones_like(p[..., :1])], -1) if experts.down_bias is not None else p
    return p.mul_(t[..., None])


def layer_features(tokens: Tokens, problem: Problem, experts: Sequence[Experts]) -> list[tuple[Tensor, Tensor]]:
    """Return, per group, the tokens that use it and their routed features."""
    shares = problem.shares(tokens)
    parts = []
    for place, expert in enumerate(experts):
        rows = torch.where(shares[:, place] != 0)[0]
        parts.append((rows, routed_features(tokens.hidden[rows], shares[rows, place], problem, expert)))
    return parts


def layer_target(tokens: Tokens, problem: Problem) -> Tensor:
    """Return the layer's routed output [n, H] under the original routing: the experts are asked for it behind any."""
    y = torch.zeros(*tokens.hidden.shape, dtype=torch.float64, device=tokens.hidden.device)
    for expert in range(len(problem.experts)):
        rows, g = chosen(tokens, [expert])
        y[rows] += target(tokens.hidden[rows], g, problem, [expert])
    return y


def layer_output(parts: Sequence[tuple[Tensor, Tensor]], down: Tensor, tokens: int) -> Tensor:
    """Return W P [n, H] of the groups' features and their down-projections side by side, `down` [H, M P]."""
    y = down.new_zeros(tokens, len(down))
    for (rows, p), own in zip(parts, down.split([p.shape[1] for _, p in parts], 1), strict=True):
        y[rows] += p @ own.T
    return y


def layer_error(problem: Problem, experts: Sequence[Experts], down: Tensor, heldout: bool) -> float | None:
    """Return ||W P - Y||^2 / ||Y||^2 of the layer, token by token, from no sums; None without tokens."""
    squared = energy = 0.0
    for tokens in chunks(problem, heldout):
        y = layer_target(tokens, problem)
        energy += float(y.square().sum())
        y -= layer_output(layer_features(tokens, problem, experts), down, len(y))
        squared += float(y.square().sum())
    return squared / energy if energy else None


def chunks(problem: Problem, heldout: bool) -> Iterable[Tokens]:
    """Return the chunks of fitted (or held-out) tokens, with progress."""
    reader, device = problem.reader, problem.experts.down.device
    label = f"chunks of {'held-out' if heldout else 'fitted'} tokens"
    return track(reader.chunks(heldout=heldout, device=device), label, reader.chunk_count())
