"""A compressed MoE as an ordinary transformers model: a router with N outputs, M experts behind it.

Every merged experts module holds M experts and a buffer `expert_map` [N] -> [0, M); the stock kernel runs on
expert_map[index], and the routing weights of merged experts add up by themselves. The text of this file is also
modeling_mergemoe.py of every compressed checkpoint, so it imports torch alone, and a checkpoint loads without
this package.
"""

from typing import Any

import torch


def mapped_class(stock: type) -> type:
    """Return a subclass of a stock experts class that maps the chosen experts, then runs any stock kernel."""

    def forward(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        return stock.forward(self, hidden_states, self.expert_map[top_k_index], top_k_weights)  # type: ignore[attr-defined]

    return type("Mapped" + stock.__name__, (stock,), {"forward": forward, "__module__": stock.__module__})


def shrink_experts(experts: Any, count: int) -> None:
    """Turn a stock experts module of N experts into one of `count`, in place; the checkpoint fills in the values."""
    total = experts.num_experts
    for name, parameter in list(experts.named_parameters(recurse=False)):
        smaller = parameter.new_empty((count, *parameter.shape[1:]))
        experts.register_parameter(name, torch.nn.Parameter(smaller, requires_grad=parameter.requires_grad))
    device = next(experts.parameters()).device
    experts.__class__ = mapped_class(type(experts))
    experts.num_experts = count
    experts.register_buffer("expert_map", torch.zeros(total, dtype=torch.int64, device=device))


def merged_class(stock: Any) -> Any:
    """Return a subclass of a stock causal LM whose experts are as few as config.mergemoe says."""

    class Merged(stock):
        # The stock methods search the source text of the class's own module: answer for the stock class.
        @classmethod
        def _can_set_experts_implementation(cls) -> bool:
            return stock._can_set_experts_implementation()

        @classmethod
        def _can_set_attn_implementation(cls) -> bool:
            return stock._can_set_attn_implementation()

        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            for name, count in config.mergemoe["experts"].items():
                shrink_experts(self.get_submodule(name), count)

    Merged.__name__ = Merged.__qualname__ = "MergeMoe" + stock.__name__
    return Merged
