"""Groups by what they would lose: the grouping `selection`.

The cost of a group is the routed squared error that is left when its pooled neurons are cut to I' and solved again
(selection.best_neurons). Halving the number of groups is a minimum-cost perfect matching; what is left to do
after the last halving is done by joining, one by one, the two groups whose union adds the least.
"""

from collections.abc import Iterable, Sequence

import networkx as nx

from mergemoe.errors import UserError
from mergemoe.problem import Group, Problem, groups_of
from mergemoe.selection import best_neurons, passes, pool
from mergemoe.sums import group_sums
from mergemoe.weights import joined

Members = tuple[int, ...]


class Costs:
    """The cost of every group that was asked for, each computed once."""

    def __init__(self, problem: Problem, width: int):
        """Take one layer, and the number of neurons that a group will keep."""
        self.problem, self.width = problem, width
        self.known: dict[Members, float] = {}

    def of(self, wanted: Iterable[Members]) -> list[float]:
        """Return the cost of each group; members ascend."""
        wanted = list(wanted)
        new = [group for group in dict.fromkeys(wanted) if group not in self.known]
        for batch in passes(self.problem, [_group(self.problem, members) for members in new]):
            pools = joined([pool(self.problem, group) for group in batch])
            _, left = best_neurons(group_sums(self.problem, batch, pools, heldout=False), pools, self.width)
            self.known |= {tuple(group.members): cost for group, cost in zip(batch, left.tolist(), strict=True)}
        return [self.known[members] for members in wanted]


def by_selection(problem: Problem, kept: int, width: int, max_size: int | None = None) -> list[int]:
    """Return expert_map [N] with `kept` groups, numbered by their first members.

    Args:
        problem: one layer, whose groups are its single experts.
        kept: M.
        width: I', the neurons that every group keeps.
        max_size: experts of a group at most.
    """
    costs = Costs(problem, width)
    groups: list[Members] = [(expert,) for expert in range(len(problem.experts))]
    limit = max_size or len(problem.experts)
    while len(groups) >= 2 * kept and 2 * max(map(len, groups)) <= limit:
        groups = halve(groups, costs)
    while len(groups) > kept:
        groups = join(groups, costs, limit)
    return numbered(groups, len(problem.experts))


def numbered(groups: Iterable[Sequence[int]], experts: int) -> list[int]:
    """Return expert_map [N] of groups of experts, numbered by their first members."""
    expert_map = [0] * experts
    for number, members in enumerate(sorted(sorted(group) for group in groups)):
        for expert in members:
            expert_map[expert] = number
    return expert_map


def halve(groups: list[Members], costs: Costs) -> list[Members]:
    """Return the groups joined two by two, at the least sum of costs; an odd one stays as it is."""
    pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
    graph = nx.Graph()
    for (i, j), cost in zip(pairs, costs.of(_union(groups[i], groups[j]) for i, j in pairs), strict=True):
        graph.add_edge(i, j, weight=cost)
    matched = nx.min_weight_matching(graph)
    single = set(range(len(groups))) - {i for pair in matched for i in pair}
    return [_union(groups[i], groups[j]) for i, j in matched] + [groups[i] for i in sorted(single)]


def join(groups: list[Members], costs: Costs, limit: int) -> list[Members]:
    """Return the groups with those two joined whose union adds the least and is small enough; ties go to the first.

    Raises:
        UserError: where every union is too large.
    """
    pairs = [(i, j) for j in range(len(groups)) for i in range(j) if len(groups[i]) + len(groups[j]) <= limit]
    if not pairs:
        raise UserError(
            f"`max_size: {limit}` leaves {len(groups)} groups of {sorted(map(len, groups))} experts of which no two "
            "may be joined: set it higher in `cluster`, or keep more experts"
        )
    unions = costs.of(_union(groups[i], groups[j]) for i, j in pairs)
    own = costs.of(groups)
    added = [cost - own[i] - own[j] for (i, j), cost in zip(pairs, unions, strict=True)]
    i, j = pairs[added.index(min(added))]
    return [group for place, group in enumerate(groups) if place not in {i, j}] + [_union(groups[i], groups[j])]


def _union(one: Members, other: Members) -> Members:
    return tuple(sorted(one + other))


def _group(problem: Problem, members: Members) -> Group:
    inside = [0 if expert in members else 1 for expert in range(len(problem.experts))]
    return groups_of(inside, [0] * len(inside))[0]
