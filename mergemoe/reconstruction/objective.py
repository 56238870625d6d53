"""The objective of reconstruction: the squared error of the layer's routed output, as a function of the merged experts.

    sum over tokens x of || sum_i t_i(x) E'_i(x) - y(x) ||^2

E'_i are the M experts after a solve, t_i(x) the weights with which the router uses them, y(x) the layer's original
routed output. Gradients are autograd's. A router's choice of experts has none: a fitted router changes the weights of
the experts that it chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import Activation, output
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.moe.solved import compact_experts
from mergemoe.moe.tokens import Tokens
from mergemoe.moe.typed_torch import ints

PARTS = {"gate": ("gate", "gate_bias"), "up": ("up", "up_bias"), "down": ("down", "down_bias")}


class Approximation:
    """A layer with the M experts of a solve in the place of N: its routed output, and the weights that are fitted.

    weights: {name: tensor with a gradient}; a name is `<role>.<expert>`, or `router`.
    """

    def __init__(self, problem: Problem, solved: Mapping[str, Tensor], parts: Sequence[str] = ()):
        """Take the experts out of a solved layer, in the dtype of the layer's own; what `parts` names can be fitted.

        Args:
            problem: the layer; with problem.changed, if the solved layer has a router.
            solved: its tensors, as merging.solve.solve returns them.
            parts: some of gate, up, down, router.
        """
        self.problem, self.origin, self.weights = problem, solved, dict[str, Tensor]()
        roles = {role for part in parts for role in PARTS.get(part, ())}
        experts = compact_experts(problem.experts, solved).map(lambda part: part.detach())
        self.experts = [self._one(experts[place : place + 1], place, roles) for place in range(len(experts))]
        if problem.changed:
            rows = solved["router"].to(experts.up, copy=True)
            if "router" in parts:
                self.weights["router"] = rows.requires_grad_()
            self.problem = problem.with_router(replace(problem.changed, rows=rows))

    def _one(self, expert: Experts, place: int, roles: set[str]) -> Experts:
        own = {role: part.clone().requires_grad_() for role, part in expert.roles().items() if role in roles}
        self.weights |= {f"{role}.{place}": part for role, part in own.items()}
        return replace(expert, **own)

    def stored(self) -> list[Experts]:
        """Return the experts as they would be stored."""
        return self.experts

    def output(self, tokens: Tokens) -> Tensor:
        """Return the layer's routed output [n, H]."""
        return merged_output(tokens.hidden, self.problem.shares(tokens), self.stored(), self.problem.act)

    def solved(self) -> dict[str, Tensor]:
        """Return the tensors of the solved layer with the weights as they are now, on the CPU, in their stored dtypes.

        All M experts are among them, also those that the solve left as they were.
        """
        experts = self.stored()
        tensors = {**self.origin, "groups": torch.arange(len(experts))}
        for role in experts[0].roles():
            stack = torch.cat([expert.roles()[role].detach() for expert in experts])
            tensors[role] = stack.to("cpu", self.origin[role].dtype)
        if "router" in self.weights:
            tensors["router"] = self.weights["router"].detach().to("cpu", self.origin["router"].dtype, copy=True)
        return tensors


def merged_output(x: Tensor, shares: Tensor, experts: Sequence[Experts], act: Activation) -> Tensor:
    """Return sum_i t_i(x) E_i(x) [n, H] over experts of one each (E = 1), with the weights t [n, M].

    expert_forward.shared_output is the same sum over one stack of experts. There, the gradient of each expert would be
    as large as the stack.
    """
    place, row = torch.where(shares.detach().mT != 0)
    counts = ints(torch.bincount(place, minlength=len(experts)))
    y = torch.zeros_like(x)
    for i, (expert, rows) in enumerate(zip(experts, torch.split(row, counts), strict=True)):
        part = shares[rows, i, None] * output(x[rows], expert, 0, act)
        y = y.index_add_(0, rows, part.to(y.dtype))
    return y
