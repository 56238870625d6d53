"""The grouping `selection`: join the experts whose union loses least.

The cost of a group is the routed squared error that remains when its pooled neurons are cut to I' and solved again
(neuron_selection.best_neurons). A minimum-cost perfect matching halves the number of groups. After the last halving,
the two groups whose union adds the least cost are joined, one pair after the other. A step is left out if the groups
could then not become M groups of at most `max_size` experts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import networkx as nx

from mergemoe.errors import UserError
from mergemoe.grouping.costs import Costs, Members, union_of
from mergemoe.moe.problem import Problem


def by_selection(
    problem: Problem,
    kept: int,
    width: int,
    max_size: int | None = None,
    search: str = "full",
    costs: Costs | None = None,
) -> list[int]:
    """Return expert_map [N] with `kept` groups, numbered by their first members.

    Args:
        problem: one layer, whose groups are its single experts.
        kept: M.
        width: I', the neurons that every group keeps.
        max_size: experts of a group at most.
        search: full, or quick: the costs are those of the layer's sketch (quick_search.sketch).
        costs: of this layer and this search, shared between calls for several sizes.
    """
    costs = costs or Costs(problem, width, search)
    groups: list[Members] = [(expert,) for expert in range(len(problem.experts))]
    limit = max_size or len(problem.experts)
    while len(groups) >= 2 * kept and 2 * max(map(len, groups)) <= limit:
        halved = halve(groups, costs, width)
        if not packs(map(len, halved), kept, limit):
            break
        groups = halved
    while len(groups) > kept:
        groups = join(groups, costs, width, kept, limit)
    return numbered(groups, len(problem.experts))


def packs(sizes: Iterable[int], kept: int, limit: int) -> bool:
    """Tell whether groups of these sizes become `kept` of at most `limit` experts, by first fit."""
    rooms = [limit] * kept
    for size in sorted(sizes, reverse=True):
        place = next((place for place, room in enumerate(rooms) if room >= size), None)
        if place is None:
            return False
        rooms[place] -= size
    return True


def numbered(groups: Iterable[Sequence[int]], experts: int) -> list[int]:
    """Return expert_map [N] of groups of experts, numbered by their first members."""
    expert_map = [0] * experts
    for number, members in enumerate(sorted(sorted(group) for group in groups)):
        for expert in members:
            expert_map[expert] = number
    return expert_map


def halve(groups: list[Members], costs: Costs, width: int) -> list[Members]:
    """Return the groups joined two by two, at the least sum of costs; an odd one stays as it is."""
    pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
    graph: nx.Graph[int] = nx.Graph()
    unions = costs.of_unions(((groups[i], groups[j]) for i, j in pairs), width)
    for (i, j), cost in zip(pairs, unions, strict=True):
        graph.add_edge(i, j, weight=cost)
    matched: set[tuple[int, int]] = nx.min_weight_matching(graph)
    single = set(range(len(groups))) - {i for pair in matched for i in pair}
    return [union_of(groups[i], groups[j]) for i, j in matched] + [groups[i] for i in sorted(single)]


def join(groups: list[Members], costs: Costs, width: int, kept: int, limit: int) -> list[Members]:
    """Return the groups with those two joined whose union adds the least of all that may be; ties go to the first.

    Raises:
        UserError: if no two groups may be joined, because `packs` finds no way to `kept` groups of at most `limit`.
    """
    sizes = sorted(map(len, groups))
    alike = {(a, b): packs(_without(sizes, a, b), kept, limit) for a in set(sizes) for b in set(sizes)}
    pairs = [(i, j) for j in range(len(groups)) for i in range(j) if alike[len(groups[i]), len(groups[j])]]
    if not pairs:
        raise UserError(
            f"`max_size: {limit}` leaves {len(groups)} groups of {sizes} experts, which do not fit into {kept} groups "
            f"of at most {limit}. Raise `max_size` of `cluster`, or keep more experts"
        )
    unions = costs.of_unions(((groups[i], groups[j]) for i, j in pairs), width)
    own = costs.of_groups(groups, width)
    added = [cost - own[i] - own[j] for (i, j), cost in zip(pairs, unions, strict=True)]
    i, j = pairs[added.index(min(added))]
    return [group for place, group in enumerate(groups) if place not in {i, j}] + [union_of(groups[i], groups[j])]


def _without(sizes: list[int], one: int, other: int) -> list[int]:
    """Return the sizes when a group of `one` and a group of `other` experts are joined."""
    left = Counter(sizes)
    left.subtract((one, other))
    return [*left.elements(), one + other]
