"""Which experts become one: a grouping of a layer's N experts into M groups, and what it asks of the tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergemoe.tokens import Activations
from mergemoe.weights import Experts


def by_weights(experts: Experts, usage: Sequence[int], kept: int) -> tuple[list[int], list[int]]:
    """Group as MergeMoE does (arXiv 2510.14436, section 4).

    The M most used experts are the centres; every other expert joins the centre whose concatenated [W_U, W_G] is
    most similar (cosine; the paper names no metric). Ties go to the lower index, in usage and in similarity.

    Returns:
        expert_map [N]: the group of each expert, groups being numbered by their centre; centres [M].
    """
    order = sorted(range(len(usage)), key=lambda expert: (-usage[expert], expert))
    centres = sorted(order[:kept])
    similarity = cosine([m for role, m in experts.roles().items() if role != "down"])[:, centres]
    expert_map = similarity.argmax(dim=1).tolist()
    for group, centre in enumerate(centres):
        expert_map[centre] = group
    return expert_map, centres


def cosine(parts: Sequence[Tensor]) -> Tensor:
    """Return the cosine similarity [N, N] of N concatenations of matrices, each part [N, ., .], summed in float64."""
    gram = sum(flat @ flat.T for flat in (part.flatten(1).double() for part in parts))
    assert isinstance(gram, Tensor)
    norms = gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)  # nothing is like an expert of zeros
    return gram / norms / norms[:, None]


def describe(
    expert_map: Sequence[int], centres: Sequence[int], usage: Sequence[int], reader: Activations
) -> dict[str, Any]:
    """Return a grouping with its figures.

    Per group: `share` of all choices; `routed_tokens`, the fitted tokens with at least one choice in it;
    `effective_tokens`, (sum t^2)^2 / sum t^4 with t the group's routing weight (docs/method.md).
    """
    groups = torch.tensor(expert_map)
    routed = torch.zeros(len(centres), dtype=torch.int64)
    second, fourth = torch.zeros(2, len(centres), dtype=torch.float64)
    for tokens in reader.chunks():
        t = torch.zeros(len(tokens.index), len(centres), dtype=torch.float64)
        t.scatter_add_(1, groups[tokens.index], tokens.weight.double())
        routed += (t > 0).sum(0)
        second += t.square().sum(0)
        fourth += t.pow(4).sum(0)
    effective = second.square() / fourth.clamp_min(torch.finfo(torch.float64).tiny)
    total = max(1, sum(usage))
    return {
        "experts": len(expert_map),
        "kept": len(centres),
        "expert_map": list(expert_map),
        "fit_tokens": reader.count(),
        "heldout_tokens": reader.count(heldout=True),
        "groups": [
            {
                "members": (members := [e for e, g in enumerate(expert_map) if g == group]),
                "centre": centre,
                "size": len(members),
                "share": sum(usage[e] for e in members) / total,
                "routed_tokens": int(routed[group]),
                "effective_tokens": float(effective[group]),
            }
            for group, centre in enumerate(centres)
        ],
    }
