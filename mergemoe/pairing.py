"""Groups by what they would lose: the grouping `selection`.

The cost of a group is the routed squared error that is left when its pooled neurons are cut to I' and solved again
(selection.best_neurons). Halving the number of groups is a minimum-cost perfect matching; what is left to do
after the last halving is done by joining, one by one, the two groups whose union adds the least. Neither is done where
the groups could then not become M of at most `max_size`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import networkx as nx
import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.expert_tensors import joined
from mergemoe.leastsquares import Moments
from mergemoe.problem import Group, Problem
from mergemoe.selection import best_neurons, passes, pool
from mergemoe.sums import group_sums
from mergemoe.unions import union_sums

Members = tuple[int, ...]


class Costs:
    """The costs of groups, members ascending, and of their unions, at every width up to the widest.

    A group's own sums are kept for its unions.
    """

    def __init__(self, problem: Problem, widest: int):
        """Take one layer, and the most neurons that a group will keep."""
        self.problem, self.widest = problem, widest
        self.own: dict[Members, Moments] = {}
        self.known: dict[Members, Tensor] = {}  # by neurons kept

    def of(self, groups: Iterable[Members], width: int) -> list[float]:
        """Return the cost of each group that keeps `width` neurons."""
        groups = list(groups)
        new = [members for members in groups if members not in self.known]
        self._prepare(new)
        for batch in passes(self.problem, [_group(members) for members in new]):
            self._learn(batch, self._sums(batch))
        return [float(self.known[members][width - 1]) for members in groups]

    def of_unions(self, pairs: Iterable[tuple[Members, Members]], width: int) -> list[float]:
        """Return the cost of each two groups' union that keeps `width` neurons."""
        pairs = list(pairs)
        unknown: dict[Members, list[Members]] = {}
        for other, one in pairs:
            if _union(other, one) not in self.known:
                unknown.setdefault(one, []).append(other)
        joining = dict.fromkeys(members for one in unknown for members in (one, *unknown[one]))  # ordered, unlike a set
        self.own = {members: sums for members, sums in self.own.items() if members in joining}
        self._prepare(joining)
        for one, others in unknown.items():
            for batch in passes(self.problem, [_group(other + one) for other in others]):
                theirs = [_group(tuple(union.members[: -len(one)])) for union in batch]
                own = _group(one)
                sums = union_sums(self.problem, own, theirs, self._sums([own]), self._sums(theirs))
                self._learn(batch, sums)
        return [float(self.known[_union(other, one)][width - 1]) for other, one in pairs]

    def _prepare(self, groups: Iterable[Members]) -> None:
        """Have the own sums of these groups."""
        for batch in passes(self.problem, [_group(members) for members in groups if members not in self.own]):
            pools = joined([pool(self.problem, group) for group in batch])
            sums = group_sums(self.problem, batch, pools, heldout=False)
            self.own |= {tuple(group.members): part for group, part in zip(batch, sums.split(), strict=True)}

    def _sums(self, groups: Sequence[Group]) -> Moments:
        """Return the stacked sums of groups' own pools."""
        return Moments.stacked([self.own[tuple(group.members)] for group in groups])

    def _learn(self, groups: Sequence[Group], sums: Moments) -> None:
        """Find what groups cost; their pools' neurons are in the order of the members."""
        _, left = best_neurons(sums, joined([pool(self.problem, group) for group in groups]), self.widest)
        self.known |= {tuple(sorted(g.members)): costs for g, costs in zip(groups, left.cpu(), strict=True)}


def by_selection(
    problem: Problem, kept: int, width: int, max_size: int | None = None, costs: Costs | None = None
) -> list[int]:
    """Return expert_map [N] with `kept` groups, numbered by their first members.

    Args:
        problem: one layer, whose groups are its single experts.
        kept: M.
        width: I', the neurons that every group keeps.
        max_size: experts of a group at most.
        costs: of this layer, where several sizes are asked for.
    """
    costs = costs or Costs(problem, width)
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
    """Tell whether groups of these sizes become `kept` of at most `limit` experts, each put where it first fits."""
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
    graph = nx.Graph()
    unions = costs.of_unions(((groups[i], groups[j]) for i, j in pairs), width)
    for (i, j), cost in zip(pairs, unions, strict=True):
        graph.add_edge(i, j, weight=cost)
    matched = nx.min_weight_matching(graph)
    single = set(range(len(groups))) - {i for pair in matched for i in pair}
    return [_union(groups[i], groups[j]) for i, j in matched] + [groups[i] for i in sorted(single)]


def join(groups: list[Members], costs: Costs, width: int, kept: int, limit: int) -> list[Members]:
    """Return the groups with those two joined whose union adds the least of all that may be; ties go to the first.

    Raises:
        UserError: where none may be: by packs, the groups cannot become `kept` of at most `limit` experts.
    """
    sizes = sorted(map(len, groups))
    alike = {(a, b): packs(_without(sizes, a, b), kept, limit) for a in set(sizes) for b in set(sizes)}
    pairs = [(i, j) for j in range(len(groups)) for i in range(j) if alike[len(groups[i]), len(groups[j])]]
    if not pairs:
        raise UserError(
            f"`max_size: {limit}` leaves {len(groups)} groups of {sizes} experts, which it knows no way to make {kept} "
            "of: set it higher in `cluster`, or keep more experts"
        )
    unions = costs.of_unions(((groups[i], groups[j]) for i, j in pairs), width)
    own = costs.of(groups, width)
    added = [cost - own[i] - own[j] for (i, j), cost in zip(pairs, unions, strict=True)]
    i, j = pairs[added.index(min(added))]
    return [group for place, group in enumerate(groups) if place not in {i, j}] + [_union(groups[i], groups[j])]


def _without(sizes: list[int], one: int, other: int) -> list[int]:
    """Return the sizes when a group of `one` and a group of `other` experts are joined."""
    left = Counter(sizes)
    left.subtract((one, other))
    return [*left.elements(), one + other]


def _union(one: Members, other: Members) -> Members:
    return tuple(sorted(one + other))


def _group(members: Members) -> Group:
    return Group(0, list(members), torch.full((len(members),), 1 / len(members), dtype=torch.float64))
