"""What an expert computes: features, then the down-projection (docs/method.md: E(x) = W_D h(x)).

A test holds these functions against transformers' own experts module.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.weights import Experts

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
}


def activation_of(described: Mapping[str, Any]) -> Activation:
    """Return the activation that a layout names.

    Raises:
        UserError: where this version does not know it.
    """
    if described["name"] not in _ACTIVATIONS or described["limit"] is not None:
        raise UserError(f"the activation {described} is not supported yet; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[described["name"]]


def features(x: Tensor, experts: Experts, expert: int, act: Activation) -> Tensor:
    """Return h(x) = act(W_G x) * (W_U x), or act(W_U x) without a gate; [n, H] -> [n, I], in the dtype of x."""
    up = x @ experts.up[expert].to(x.dtype).T
    if experts.gate is None:
        return act(up)
    return act(x @ experts.gate[expert].to(x.dtype).T) * up


def output(x: Tensor, experts: Experts, expert: int, act: Activation) -> Tensor:
    """Return E(x) = W_D h(x), [n, H] -> [n, H], in the dtype of x."""
    return features(x, experts, expert, act) @ experts.down[expert].to(x.dtype).T


def routed_output(x: Tensor, index: Tensor, weight: Tensor, experts: Experts, act: Activation) -> Tensor:
    """Return y(x) = sum_j g_j(x) E_j(x) over the chosen experts.

    Args:
        x: [n, H]
        index: [n, K] chosen experts; several may be equal, as after an expert_map.
        weight: [n, K] their routing weights.
        experts: the E experts that `index` points to.
        act: the activation.
    """
    y = torch.zeros_like(x)
    for expert in index.unique().tolist():
        token, choice = torch.where(index == expert)
        y.index_add_(0, token, weight[token, choice, None].to(x.dtype) * output(x[token], experts, expert, act))
    return y
