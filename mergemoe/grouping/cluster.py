"""Grouping of a layer's N experts into M groups, and the figures of a grouping."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mergemoe.grouping.by_selection import by_selection, numbered
from mergemoe.grouping.costs import Costs
from mergemoe.moe.expert_forward import output
from mergemoe.moe.finite import check_finite
from mergemoe.moe.problem import Problem
from mergemoe.moe.records import Grouping, Profile
from mergemoe.moe.tokens import Activations, dense_weights

_SEEN = {"gate", "up", "gate_bias", "up_bias"}  # the roles that make an expert's features


class Grouped(NamedTuple):
    """A grouping: expert_map [N] has the group of each expert, or -1 if it is pruned; `cost` is what `by` minimizes."""

    expert_map: list[int]
    cost: float


def group_experts(
    by: str,
    kept: int,
    problem: Problem,
    profiled: Profile,
    width: int,
    max_size: int | None = None,
    router_groups: int = 1,
    search: str = "full",
) -> Grouped:
    """Return a grouping of a layer's experts.

    Its cost: of `weights` and `router` the sum of 1 - similarity with the centre; of `outputs` that of the distances of
    what was joined; of `selection` that of the groups' errors; of `saliency` that of the pruned experts' saliency.

    Args:
        by: how experts are grouped, as in params.yaml.
        kept: M, the number of groups.
        problem: the layer.
        profiled: the layer's profile.
        width: neurons that an expert will keep, which `selection` counts with.
        max_size: experts of a group at most.
        router_groups: groups of which a token's experts are chosen (deepseek_v3); each keeps equally many.
        search: full or quick, how `selection` counts.
    """
    if by == "weights":
        similarity = cosine([m for role, m in problem.experts.roles().items() if role in _SEEN])
        return _alike(similarity, profiled["usage"], kept, max_size)
    if by == "router":
        similarity = torch.tensor(profiled["router_similarity"], dtype=torch.float64)
        return _alike(similarity, profiled["usage"], kept, max_size)
    if by == "outputs":
        return by_outputs(mean_outputs(problem), kept)
    if by == "selection":
        costs = Costs(problem, width, search)
        expert_map = by_selection(problem, kept, width, max_size, costs=costs)
        return Grouped(expert_map, sum(costs.of_groups(members_of(expert_map), width)))
    if by == "saliency":
        expert_map = by_saliency(profiled["saliency"], kept, router_groups)
        pruned = (score for score, group in zip(profiled["saliency"], expert_map, strict=True) if group < 0)
        return Grouped(expert_map, sum(pruned))
    return Grouped(list(range(len(problem.experts))), 0.0)  # none


def members_of(expert_map: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the members of each group, ascending."""
    return [tuple(e for e, g in enumerate(expert_map) if g == number) for number in range(max(expert_map) + 1)]


def _alike(similarity: Tensor, usage: Sequence[int], kept: int, max_size: int | None) -> Grouped:
    expert_map = by_similarity(similarity, usage, kept, max_size)
    centres = [most_used(members, usage) for members in members_of(expert_map)]
    apart = (1 - float(similarity[expert, centres[group]]) for expert, group in enumerate(expert_map))
    return Grouped(expert_map, sum(apart))


def most_used(members: Sequence[int], usage: Sequence[int]) -> int:
    """Return the centre of a group; ties go to the lower index."""
    return max(members, key=lambda expert: (usage[expert], -expert))


def by_similarity(similarity: Tensor, usage: Sequence[int], kept: int, max_size: int | None = None) -> list[int]:
    """Let the M most used experts be centres, and every other expert join the one that it is most like.

    So MergeMoE (arXiv 2510.14436, section 4) with [W_U, W_G] and cosines (it names no metric), and M-SMoE
    (arXiv 2310.01334) with columns of router logits. Ties go to the lower index, in usage and in similarity. Groups are
    numbered by their centres.

    Args:
        similarity: [N, N].
        usage: [N].
        kept: M.
        max_size: experts of a group at most; those most like a centre come first, the others go to the next best.
    """
    order = sorted(range(len(usage)), key=lambda expert: (-usage[expert], expert))
    centres = sorted(order[:kept])
    expert_map = [-1] * len(usage)
    for number, centre in enumerate(centres):
        expert_map[centre] = number
    likeness = similarity[:, centres].clone()
    joining = sorted(order[kept:], key=lambda expert: (-float(likeness[expert].max()), expert))
    for expert in joining:
        full = torch.tensor([expert_map.count(number) >= (max_size or len(usage)) for number in range(kept)])
        expert_map[expert] = int(likeness[expert].masked_fill(full.to(likeness.device), float("-inf")).argmax())
    return expert_map


def by_saliency(saliency: Sequence[float], kept: int, router_groups: int = 1) -> list[int]:
    """Keep the M most salient experts, equally many of each of the router's groups; the others are pruned, -1.

    Ties go to the lower index; kept experts are numbered in their order.
    """
    size = len(saliency) // router_groups
    chosen: list[int] = []
    for start in range(0, len(saliency), size):
        inside = sorted(range(start, start + size), key=lambda expert: (-saliency[expert], expert))
        chosen += inside[: kept // router_groups]
    return [sorted(chosen).index(expert) if expert in chosen else -1 for expert in range(len(saliency))]


def by_outputs(outputs: Tensor, kept: int) -> Grouped:
    """Group as HC-SMoE does: agglomerative, average linkage, Euclidean distance of mean outputs [N, H]."""
    from scipy.cluster import hierarchy  # pyright: ignore[reportMissingTypeStubs]

    linkage = cast(Any, hierarchy).linkage  # scipy has no type stubs
    clusters = {expert: [expert] for expert in range(len(outputs))}
    steps = linkage(outputs.cpu().numpy(), "average")[: len(outputs) - kept]  # two clusters, distance, size of both
    for step, joined in enumerate(steps):
        one, other = int(joined[0]), int(joined[1])
        clusters[len(outputs) + step] = clusters.pop(one) + clusters.pop(other)
    return Grouped(numbered(clusters.values(), len(outputs)), float(steps[:, 2].sum()))


def mean_outputs(problem: Problem) -> Tensor:
    """Return the mean of E_j(x) over all fitted tokens, routed to j or not, [N, H] in float64."""
    sums = torch.zeros(len(problem.experts), problem.experts.down.shape[1], dtype=torch.float64)
    for tokens in problem.chunks(heldout=False):
        for expert in range(len(sums)):
            sums[expert] += output(tokens.hidden, problem.experts, expert, problem.act).double().sum(0).cpu()
    check_finite("mean outputs of experts", sums)
    return sums / max(1, problem.reader.count())


def cosine(parts: Sequence[Tensor]) -> Tensor:
    """Return the cosine similarity [N, N] of N concatenations of matrices, each part [N, ., .], summed in float64."""
    gram = sum(flat @ flat.T for flat in (part.flatten(1).double() for part in parts))
    assert isinstance(gram, Tensor)
    norms = gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)  # nothing is like an expert of zeros
    return gram / norms / norms[:, None]


def describe_grouping(grouped: Grouped, usage: Sequence[int], reader: Activations) -> Grouping:
    """Return a grouping with its figures.

    Per group: `centre`, its most used expert; `share` of all choices; `routed_tokens`, the fitted tokens with at least
    one choice in it; `effective_tokens`, (sum t^2)^2 / sum t^4 with t the group's routing weight (docs/method.md).
    """
    expert_map, cost = grouped
    groups, kept = torch.tensor(expert_map), max(expert_map) + 1
    routed = torch.zeros(kept, dtype=torch.int64)
    second, fourth = torch.zeros(2, kept, dtype=torch.float64)
    for tokens in reader.chunks():
        group_of = groups[tokens.index] % (kept + 1)  # column `kept` takes the experts that are pruned
        t = dense_weights(group_of, tokens.weight.double(), kept + 1)[:, :kept]
        routed += (t > 0).sum(0)
        second += t.square().sum(0)
        fourth += t.pow(4).sum(0)
    effective = second.square() / fourth.clamp_min(torch.finfo(torch.float64).tiny)
    total = max(1, sum(usage))
    return {
        "experts": len(expert_map),
        "kept": kept,
        "expert_map": expert_map,
        "cost": cost,
        "pruned": [expert for expert, group in enumerate(expert_map) if group < 0],
        "fit_tokens": reader.count(),
        "heldout_tokens": reader.count(heldout=True),
        "groups": [
            {
                "members": list(members),
                "centre": most_used(members, usage),
                "size": len(members),
                "share": sum(usage[e] for e in members) / total,
                "routed_tokens": int(routed[number]),
                "effective_tokens": float(effective[number]),
            }
            for number, members in enumerate(members_of(expert_map))
        ],
    }
