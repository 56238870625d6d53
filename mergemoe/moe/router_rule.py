"""Routers: the rule by which tokens choose experts, and routers with fewer rows.

Preserved routing keeps all N rows, and a group's weight t_i(x) is the sum of its members' weights (problem.Problem).
Pruned routing deletes rows. Folded routing has one row per group, a linear combination of the old rows. The last two
give an ordinary router of M rows, which stock code runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.layout_types import LayerLayout
from mergemoe.moe.tokens import Tokens, dense_weights
from mergemoe.moe.typed_torch import unflatten


@dataclass(frozen=True)
class Rule:
    """The rule that turns logits into routing weights; checkpoints/router_headers.py lists the families that follow it.

    scores: softmax over all experts, or sigmoid.
    top_k: K.
    normalized: whether a token's K weights are divided by their sum.
    scaling: the factor of the weights.
    groups, top_groups: experts form so many groups, and a token uses only the `top_groups` best, ranked by their two
        highest scores.
    """

    scores: str
    top_k: int
    normalized: bool
    scaling: float = 1.0
    groups: int = 1
    top_groups: int = 1

    def weights(self, logits: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return g [n, M], 0 for experts not chosen, of logits [n, M]; the bias [M] only affects the choice."""
        scores = logits.softmax(-1) if self.scores == "softmax" else logits.sigmoid()
        choice = scores if bias is None else scores + bias
        if self.groups > 1:
            by_group = unflatten(choice, 1, (self.groups, -1))
            best = by_group.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
            open_to = torch.zeros_like(by_group[..., 0], dtype=torch.bool).scatter_(1, best, True)
            choice = by_group.masked_fill(~open_to[..., None], float("-inf")).flatten(1)
        index = choice.topk(self.top_k, dim=-1).indices
        weight = scores.gather(1, index)
        weight = weight / weight.sum(1, keepdim=True) if self.normalized else weight
        return torch.zeros_like(scores).scatter_(1, index, weight * self.scaling)


@dataclass(frozen=True)
class Router:
    """A rule and its numbers: rows [N, H], and the bias [N] of the choice, if the family has one."""

    rule: Rule
    rows: Tensor
    bias: Tensor | None = None

    def weights(self, hidden: Tensor) -> Tensor:
        """Return g [n, N] of hidden states [n, H]."""
        return self.rule.weights(hidden @ self.rows.to(hidden).T, None if self.bias is None else self.bias.to(hidden))

    def state(self) -> dict[str, Tensor]:
        """Return the tensors under the names that they have in a solved layer."""
        return {"router": self.rows} | ({} if self.bias is None else {"router_bias": self.bias})


def layer_router(entry: LayerLayout, tensors: Mapping[str, Tensor]) -> Router:
    """Return the router of one layer of a layout, with its tensors as expert_weights.read_router gives them."""
    facts = entry["router"]
    assert facts["rule"] is not None  # read_router refuses such a router
    rule = Rule(
        facts["rule"], entry["top_k"], facts["normalized"], facts["scaling"], facts["groups"], facts["top_groups"]
    )
    return Router(rule, tensors["router"], tensors.get("router_bias"))


def pruned_router(router: Router, kept: Tensor) -> Router:
    """Return the router with some of its rows; kept [M]."""
    return Router(router.rule, router.rows[kept], None if router.bias is None else router.bias[kept])


def check_rule(router: Router, tokens: Tokens) -> None:
    """Check that the rule gives the captured routing weights; otherwise the effect of a changed router is unknown.

    Raises:
        UserError: if more than 1% of the weight differs; rounding of half-precision logits changes less.
    """
    captured = dense_weights(tokens.index, tokens.weight, tokens.logits.shape[1])
    again = router.rule.weights(tokens.logits, None if router.bias is None else router.bias.to(tokens.logits))
    differing = float((again - captured).abs().sum() / captured.abs().sum().clamp_min(1e-30))
    if differing > 0.01:
        raise UserError(
            f"this router does not follow the rule of its family ({router.rule}): {differing:.1%} of the "
            "routing weight differs on captured tokens, so its rows can be neither deleted nor joined. Use a method "
            "that keeps the routing"
        )
