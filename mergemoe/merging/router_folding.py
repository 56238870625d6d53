"""One router row per group (folded routing).

A row starts from the usage-weighted mean of its members' rows and is fitted, as a combination of all old rows, to
what the members' logits l_j amount to together: log sum exp l_j where scores are a softmax, so that the shares of all
groups stay what they were; the logit of min(sum sigmoid(l_j), 1) where they are sigmoids, which saturate.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

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
        moments.add(logits[None], wanted[None])
    penalty = PENALTY * float(moments.gram[0].diagonal().mean())
    combined = solve_toward_prior(moments, start[None], penalty)[0] if penalty else start
    bias = None if router.bias is None else (start @ router.bias.double()).to(router.bias)
    return Router(router.rule, (combined @ router.rows.double()).to(router.rows), bias)


def group_logit(logits: Tensor, scores: str) -> Tensor:
    """Return the one logit [n] that stands for those of a group's members [n, |C|]."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    if scores == "softmax":
        return logits.logsumexp(1)
    return logits.sigmoid().sum(1).clamp(max=SATURATED).logit()
