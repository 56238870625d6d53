"""Random layers as wide as those of models: routing like Zipf's law, hidden states with a few massive channels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergemoe.moe.experts import Experts
from mergemoe.moe.tokens import Remembered

MASSIVE, TIMES = 4, 30.0  # channels of a hidden state that are so many times as large as the others
ALIKE = 0.7  # share of an expert's weights that its neighbour has, too


class Width(NamedTuple):
    """The sizes of a layer: H, I, N experts, K per token; and the MoE layers of the model."""

    hidden: int
    inner: int
    experts: int
    top_k: int
    layers: int


WIDTHS = {
    "qwen1.5-moe": Width(2048, 1408, 60, 4, 24),
    "qwen3-30b-a3b": Width(2048, 768, 128, 8, 48),
    "deepseek-moe-16b": Width(2048, 1408, 64, 6, 27),
}


def part(name: str, experts: int) -> Width:
    """Return a model's layer cut to so many experts: a token chooses them in the share that it has of all, or one."""
    whole = WIDTHS[name]
    return whole._replace(experts=experts, top_k=max(1, round(whole.top_k * experts / whole.experts)))


def random_experts(width: Width, seed: int = 0) -> Experts:
    """Return experts in bfloat16; two neighbours (0 and 1, 2 and 3, ...) are alike."""
    draw = torch.Generator().manual_seed(seed)

    def matrices(rows: int, columns: int) -> Tensor:
        made = torch.empty(width.experts, rows, columns, dtype=torch.bfloat16)
        for expert in range(width.experts):
            own = torch.randn(rows, columns, generator=draw) * columns**-0.5
            made[expert] = own if expert % 2 == 0 else ALIKE * made[expert - 1] + (1 - ALIKE**2) ** 0.5 * own
        return made

    return Experts(
        up=matrices(width.inner, width.hidden),
        gate=matrices(width.inner, width.hidden),
        down=matrices(width.hidden, width.inner),
    )


def random_tokens(width: Width, tokens: int, seed: int = 0, held: float = 0.1) -> Remembered:
    """Return a layer's calls: expert j is chosen about 1/(j + 1) as often as the first, by logits of their own."""
    draw = np.random.default_rng(seed)
    scale = np.exp(0.5 * draw.standard_normal(width.hidden))
    scale[draw.choice(width.hidden, MASSIVE, replace=False)] *= TIMES
    hidden = (draw.standard_normal((tokens, width.hidden), dtype=np.float32) * scale).astype(np.float32)
    popular = -np.log(np.arange(width.experts) + 1.0)
    logits = torch.from_numpy((draw.gumbel(size=(tokens, width.experts)) + popular).astype(np.float32))
    weight, index = logits.softmax(1).topk(width.top_k)
    sequence = torch.arange(tokens, dtype=torch.int32) // 512
    rows = {
        "hidden": torch.from_numpy(hidden),
        "expert_index": index.short(),
        "expert_weight": weight,
        "router_logits": logits,
        "sequence": sequence,
    }
    sequences = int(sequence[-1]) + 1
    return Remembered([rows], torch.arange(sequences) >= sequences - round(held * sequences))
