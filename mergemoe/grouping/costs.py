"""The cost of a group of experts: the routed error that remains when its neurons are cut and solved again."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mergemoe.grouping.expert_features import ExpertFeatures
from mergemoe.grouping.quick_search import sketch
from mergemoe.grouping.union_moments import union_sums
from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.least_squares import Moments
from mergemoe.merging.neuron_selection import best_neurons, passes, pool, pooled_down
from mergemoe.moe.experts import joined
from mergemoe.moe.layer_sizes import quarter
from mergemoe.moe.problem import Group, Problem

Members = tuple[int, ...]


class Costs:
    """The costs of groups, members ascending, and of their unions, at every width up to the widest.

    A group's own sums are kept for its unions.
    """

    def __init__(self, problem: Problem, widest: int, search: str = "full"):
        """Take one layer, and the most neurons that a group will keep; a quick search counts with a sketch of it."""
        self.quick = search == "quick"
        self.problem, self.widest = sketch(problem) if self.quick else problem, self._counted(widest)
        self.features = ExpertFeatures(self.problem, torch.float32 if self.quick else torch.float64)
        self.own: dict[Members, Moments] = {}
        self.known: dict[Members, Tensor] = {}  # by neurons kept

    def of_groups(self, groups: Iterable[Members], width: int) -> list[float]:
        """Return the cost of each group that keeps `width` neurons."""
        groups = list(groups)
        new = [members for members in groups if members not in self.known]
        self._prepare(new)
        for batch in passes(self.problem, [_group(members) for members in new]):
            self._learn(batch, self._sums(batch))
        return [float(self.known[members][self._counted(width) - 1]) for members in groups]

    def of_unions(self, pairs: Iterable[tuple[Members, Members]], width: int) -> list[float]:
        """Return the cost of each two groups' union that keeps `width` neurons."""
        pairs = list(pairs)
        unknown: dict[Members, list[Members]] = {}
        for other, one in pairs:
            if union_of(other, one) not in self.known:
                unknown.setdefault(one, []).append(other)
        joining = dict.fromkeys(members for one in unknown for members in (one, *unknown[one]))  # ordered, unlike a set
        self.own = {members: sums for members, sums in self.own.items() if members in joining}
        self._prepare(joining)
        for one, others in unknown.items():
            for batch in passes(self.problem, [_group(other + one) for other in others]):
                theirs = [_group(tuple(union.members[: -len(one)])) for union in batch]
                own = _group(one)
                sums = union_sums(self.problem, self.features, own, theirs, self._sums([own]), self._sums(theirs))
                self._learn(batch, sums)
        return [float(self.known[union_of(other, one)][self._counted(width) - 1]) for other, one in pairs]

    def _counted(self, width: int) -> int:
        """Return how many neurons of the sketch stand for so many of the layer."""
        return quarter(width) if self.quick else width

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
        _, left = best_neurons(sums, torch.cat([pooled_down(self.problem, group) for group in groups]), self.widest)
        self.known |= {tuple(sorted(g.members)): costs for g, costs in zip(groups, left.cpu(), strict=True)}


def union_of(one: Members, other: Members) -> Members:
    """Return the members of two groups together."""
    return tuple(sorted(one + other))


def _group(members: Members) -> Group:
    return Group(0, list(members), torch.full((len(members),), 1 / len(members), dtype=torch.float64))
