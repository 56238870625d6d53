"""Hooks that record the calls of a layer's experts: inputs, choices and weights, behind all routing rules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mergemoe.moe.layout_types import LayerLayout

Call = tuple[Tensor, Tensor, Tensor]  # inputs [n, H], chosen experts [n, K], their weights [n, K]


class Recorder:
    """Hooks on one layer's router and experts; `rows` gives what the last batch called them with."""

    def __init__(self, model: Any, entry: LayerLayout):
        """Put the hooks on."""
        self.experts, self.identity, self.which = entry["experts"], entry["identity"], entry["router"]["logits"]
        module = model.get_submodule(entry["module"])
        router = model.get_submodule(entry["router"]["module"])
        self.call_of = _CALLS.get(_stock_name(module), _as_called)
        self.handles = [
            module.register_forward_pre_hook(lambda _, args: setattr(self, "args", args)),
            router.register_forward_hook(lambda _, args, output: setattr(self, "routed", output)),
        ]
        self.args: Any = None
        self.routed: Any = None

    def rows(self, mask: Tensor, sequence: int) -> dict[str, Tensor]:
        """Return the rows of real tokens.

        Args:
            mask: [B, L], 0 for padding.
            sequence: the number of the batch's first sequence.
        """
        logits = self.routed[self.which] if isinstance(self.routed, tuple) else self.routed
        hidden, index, weight = self.call_of(self.args, self.routed, self.experts)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        logits = logits.reshape(-1, logits.shape[-1])[:, : self.experts]
        if self.identity:  # an identity expert returns its input: such a choice gets weight 0
            weight = weight.masked_fill(index >= self.experts, 0)
            index = index.masked_fill(index >= self.experts, 0)
        keep = mask.flatten().bool()
        numbers = torch.arange(sequence, sequence + len(mask), dtype=torch.int32)
        sequences = numbers.repeat_interleave(mask.shape[1])
        times = len(hidden) // len(keep)  # each choice has a row of its own if experts see different inputs
        keep, sequences = keep.repeat_interleave(times), sequences.repeat_interleave(times)
        return {
            "hidden": hidden[keep],
            "expert_index": index[keep].to(torch.int16),
            "expert_weight": weight[keep],
            "router_logits": logits.repeat_interleave(times, 0)[keep],
            "sequence": sequences[keep.cpu()],
        }

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def _stock_name(module: Any) -> str:
    return type(module).__name__.removeprefix("Mapped")


def _as_called(args: Any, routed: Any, experts: int) -> Call:
    """Nearly all: experts(inputs, chosen, weights)."""
    hidden, index, weight = args[:3]
    return hidden, index, weight


def _llama4(args: Any, routed: Any, experts: int) -> Call:
    """llama4 scales an expert's input, not its output, by the score, so every choice is a row with weight 1."""
    scores = routed[0]
    top_k = int((scores[0] > 0).sum())
    index = scores.topk(top_k, dim=1).indices
    inputs = args[0].view(experts, len(scores), -1)
    tokens = torch.arange(len(scores), device=index.device)[:, None]
    index = index.to(torch.int64)
    return inputs[index, tokens].flatten(0, 1), index.reshape(-1, 1), torch.ones_like(scores[:, :1]).repeat(top_k, 1)


def _jetmoe(args: Any, routed: Any, experts: int) -> Call:
    """Jetmoe sorts the choices by expert: undo that."""
    order, _, gates, sizes, _ = routed
    hidden = args[0].reshape(-1, args[0].shape[-1])
    sorted_experts = torch.arange(experts, device=order.device).repeat_interleave(torch.tensor(sizes).to(order.device))
    index, weight = torch.empty_like(sorted_experts), torch.empty_like(gates)
    index[order], weight[order] = sorted_experts, gates
    return hidden, index.view(len(hidden), -1), weight.view(len(hidden), -1)


def _switch(args: Any, routed: Any, experts: int) -> Call:
    """Switch's choices are one-hot, [n, 1, N]; all zero for a token that its expert had no room for: weight 0."""
    hidden, chosen, weight = args
    return hidden, chosen.argmax(-1), weight * chosen.sum(-1)


_CALLS: dict[str, Callable[[Any, Any, int], Call]] = {
    "Llama4TextExperts": _llama4,
    "JetMoeMoE": _jetmoe,
    "SwitchTransformersExperts": _switch,
}
