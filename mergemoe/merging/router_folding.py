"""Folded routing: one router row per group, fitted to the logits of the group's members.

A row starts at the usage-weighted mean of its members' rows. It is fitted, as a combination of all old rows, to one
logit per group. If scores are a softmax, that is log sum exp of the members' logits, which keeps each group's share.
If scores are sigmoids, it is the logit of min(sum sigmoid(l_j), SATURATED).
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mergemoe.merging.least_squares import Moments
from mergemoe.merging.ridge_regression import solve_toward_prior
from mergemoe.moe.problem import Group
from mergemoe.moe.router_rule import Router
from mergemoe.moe.tokens import Tokens

SATURATED = 1 - 1e-3  # a sum of sigmoids above it has no logit worth following
PENALTY = 1e-3  # of leaving the mean, a share of a logit's mean square


def folded_router(router: Router, groups: Sequence[Group], chunks: Iterable[Tokens]) -> Router:
    """Return the router with a row per group; the bias of the choice is the usage-weighted mean of its members'."""
    start = torch.zeros(len(groups), len(router.rows), dtype=torch.float64, device=router.rows.device)
    for place, group in enumerate(groups):
        start[place, group.members] = group.weights.to(start)
    moments = Moments.zeros(len(router.rows), len(groups), router.rows.device)
    for tokens in chunks:
        logits = tokens.logits.double()
        wanted = torch.stack([group_logit(logits[:, g.members], router.rule.scores) for g in groups], 1)
        moments.add(logits[None], wanted[None], [0])
    moments.complete()
    penalty = PENALTY * float(moments.gram[0].diagonal().mean())
    combined = solve_toward_prior(moments, start[None], penalty)[0] if penalty else start
    bias = None if router.bias is None else (start @ router.bias.double()).to(router.bias)
    return Router(router.rule, (combined @ router.rows.double()).to(router.rows), bias)


def group_logit(logits: Tensor, scores: str) -> Tensor:
    """Return the logit [n] of a group from the logits of its members [n, |C|]."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    if scores == "softmax":
        return logits.logsumexp(1)
    total = logsigmoid(logits).logsumexp(1).clamp(max=math.log(SATURATED))  # a sigmoid itself is 0 below -745
    return total - total.expm1().neg().log()
