"""The forward pass of an expert: E(x) = W_D h(x) + b, with the features h of gate and up (docs/method.md).

A test compares these functions with transformers' own experts module, for every family.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import ActivationFacts
from mergemoe.moe.typed_torch import distinct

Which = int | slice | Sequence[int] | Tensor  # one expert, or b of them side by side
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
# The ways to make features of gate and up, and the constants that each needs.
RULES = {
    "plain": (),
    "clamped": ("limit",),
    "clamped_after": ("limit",),
    "shifted": ("limit", "alpha"),
}


@dataclass(frozen=True)
class Activation:
    """The features as a function of W_G x and W_U x; f is the function called `name`.

    plain: f(gate) * up, or f(up) without a gate
    clamped: f(min(gate, L)) * clamp(up, -L, L), L being `limit`, as deepseek_v4
    clamped_after: min(f(gate), L) * clamp(up, -L, L), as step3p7
    shifted: g sigmoid(alpha g) (clamp(up, -L, L) + 1), g = min(gate, L), as gpt_oss

    norm_eps: of the norm after the down-projection; None if the family has none.
    """

    name: str
    rule: str = "plain"
    limit: float | None = None
    alpha: float = 1.0
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        """Refuse what this version does not compute."""
        if self.name not in FUNCTIONS or self.rule not in RULES:
            raise UserError(f"{self} is not known here; known: {', '.join(FUNCTIONS)}; {', '.join(RULES)}")

    def facts(self) -> ActivationFacts:
        """Return the fields as a layout has them."""
        return cast(ActivationFacts, asdict(self))

    def __call__(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """Return the features of W_U x and W_G x."""
        f = FUNCTIONS[self.name]
        if gate is None:
            return f(up)
        if self.rule == "plain":
            return f(gate) * up
        assert self.limit is not None
        limit = self.limit
        if self.rule == "shifted":
            gate = gate.clamp(max=limit)
            return gate * torch.sigmoid(gate * self.alpha) * (up.clamp(-limit, limit) + 1)
        gate = f(gate).clamp(max=limit) if self.rule == "clamped_after" else f(gate.clamp(max=limit))
        return gate * up.clamp(-limit, limit)


def features(x: Tensor, experts: Experts, expert: Which, act: Activation) -> Tensor:
    """Return h(x), [n, H] -> [n, I] or of several experts [b, n, H] -> [b, n, I], in the dtype of x."""
    return act(*projections(x, experts, expert))


def projections(x: Tensor, experts: Experts, expert: Which) -> tuple[Tensor, Tensor | None]:
    """Return W_U x and W_G x with their biases, in the shape of the features; the latter is None without a gate."""
    up = _linear(x, experts.up[expert], experts.up_bias, expert)
    return up, None if experts.gate is None else _linear(x, experts.gate[expert], experts.gate_bias, expert)


def linear_output(x: Tensor, experts: Experts, expert: Which, act: Activation) -> Tensor:
    """Return W_D h(x) + b in the shape and dtype of x: the expert's output before the norm, if its family has one."""
    return _linear(features(x, experts, expert, act), experts.down[expert], experts.down_bias, expert)


def output(x: Tensor, experts: Experts, expert: int, act: Activation) -> Tensor:
    """Return E(x), [n, H] -> [n, H], in the dtype of x."""
    y = linear_output(x, experts, expert, act)
    if experts.norm is None:
        return y
    scaled = y * (1 + experts.norm[expert].to(x.dtype))
    return torch.nn.functional.rms_norm(scaled, scaled.shape[-1:], eps=act.norm_eps)


def with_one(h: Tensor, experts: Experts) -> Tensor:
    """Return features [..., n, P] with 1 as a last column if there is a down bias (experts.down_of)."""
    return h if experts.down_bias is None else torch.cat([h, torch.ones_like(h[..., :1])], -1)


def weighted_features(x: Tensor, t: Tensor, experts: Experts, expert: Which, act: Activation) -> Tensor:
    """Return t(x) h(x) [r, P] in float64, with t(x) as a last column if there is a down bias (experts.down_of); t [r].

    For b experts side by side, x [b, r, H] and t [b, r] give [b, r, P].
    """
    return with_one(features(x, experts, expert, act), experts).double().mul_(t[..., None])


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None, expert: Which) -> Tensor:
    y = x @ matrix.to(x.dtype).mT
    return y if bias is None else y + bias[expert].to(x.dtype).unsqueeze(-2)


def shared_output(x: Tensor, shares: Tensor, experts: Experts, act: Activation) -> Tensor:
    """Return sum_i t_i(x) E_i(x) [n, H] over experts with the weights t [n, E]."""
    y = torch.zeros_like(x)
    for expert in range(len(experts)):
        rows = torch.where(shares[:, expert] != 0)[0]
        y[rows] += shares[rows, expert, None].to(x.dtype) * output(x[rows], experts, expert, act)
    return y


def routed_output(x: Tensor, index: Tensor, weight: Tensor, experts: Experts, act: Activation) -> Tensor:
    """Return y(x) = sum_j g_j(x) E_j(x) over the chosen experts.

    It takes the choices one expert after the other, as the eager kernel of transformers does; shared_output takes one
    weight per expert, so a choice of weight 0 or a repeated choice gives other last bits.

    Args:
        x: [n, H]
        index: [n, K] chosen experts; several may be equal, for example after an expert_map.
        weight: [n, K] their routing weights; a choice of weight 0 adds nothing.
        experts: the E experts that `index` points to.
        act: the activation.
    """
    y = torch.zeros_like(x)
    for expert in distinct(index):
        token, choice = torch.where(index == expert)
        y.index_add_(0, token, weight[token, choice, None].to(x.dtype) * output(x[token], experts, expert, act))
    return y
