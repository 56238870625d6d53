"""Zipping: the two most correlated units of a group's pool are joined until I units are left.

ZipIt (arXiv 2305.03053) as adapted to experts by arXiv 2310.01334. A unit holds some of the |C| I neurons of its group,
and its feature is their mean. The covariance of units a, b, k therefore follows from that of the neurons, and one pass
over the tokens is enough:

    cov(a + b, k) = (n_a cov(a, k) + n_b cov(b, k)) / (n_a + n_b),    n the number of neurons in a unit
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergemoe.merging.neuron_selection import passes, pool
from mergemoe.moe.expert_forward import features
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Problem
from mergemoe.moe.typed_torch import ints

ENOUGH = 3  # tokens; of two, every correlation is 1 or -1 and says nothing


def zipped_experts(problem: Problem, groups: Sequence[Group]) -> list[Experts]:
    """Return one expert (E = 1) of I units per group: mean rows, and the sums of 1/|C| of the down columns.

    Columns are summed because a unit's feature stands for all of its neurons: equal neurons then put out what their
    experts put out on average. A down bias is the plain mean. A group of one is that expert, and one with too few
    tokens to correlate anything is its dominant expert.
    """
    several = [group for group in groups if len(group.members) > 1]
    found = {group.number: problem.experts[[group.members[group.dominant]]] for group in groups}
    width = problem.experts.up.shape[1]
    for batch in passes(problem, several):
        for group, spread in zip(batch, spreads(problem, batch), strict=True):
            if spread.tokens >= ENOUGH:
                found[group.number] = _expert(problem, group, units(spread.covariance(), width))
    return [found[group.number] for group in groups]


class Spread:
    """Running float64 sums of features less those of the first token: what is constant varies by exactly 0."""

    def __init__(self, width: int, device: torch.device):
        """Return the sums over no tokens."""
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.first: Tensor | None = None
        self.tokens = 0

    def add(self, h: Tensor) -> None:
        """Add the features h [n, P] of some tokens."""
        if not len(h):
            return
        h = h.double()
        self.first = h[0].clone() if self.first is None else self.first
        h = h - self.first
        self.total += h.sum(0)
        self.gram += h.T @ h
        self.tokens += len(h)

    def covariance(self) -> Tensor:
        """Return the covariance [P, P] times the number of tokens; it takes the place of the sums."""
        return self.gram.addr_(self.total, self.total, alpha=-1 / self.tokens)


def spreads(problem: Problem, groups: Sequence[Group]) -> list[Spread]:
    """Return how each group's pooled features vary over the fitted tokens that chose a member."""
    pools = [pool(problem, group) for group in groups]
    sums = [Spread(expert.up.shape[1], expert.up.device) for expert in pools]
    for tokens in problem.chunks(heldout=False):
        g = problem.routing_weights(tokens)
        for group, expert, spread in zip(groups, pools, sums, strict=True):
            rows = torch.where((g[:, group.members] != 0).any(1))[0]
            spread.add(features(tokens.hidden[rows], expert, 0, problem.act))
    return sums


class Units:
    """Neurons in units, each with the mean feature of its neurons; at first every neuron is one."""

    def __init__(self, covariance: Tensor):
        """Begin with the covariance [P, P] of the neurons, to any scale; it is overwritten."""
        self.covariance = covariance
        self.deviation = covariance.diagonal().clamp_min(0).sqrt()  # below 0 by rounding
        self.count = torch.ones_like(self.deviation)
        self.unit = torch.arange(len(covariance), device=covariance.device)  # [P], named by its lowest neuron
        self.alive = torch.ones_like(self.unit, dtype=torch.bool)
        # Each unit's most correlated other one, so that a step looks at few units.
        self.other, self.best = torch.empty_like(self.unit), torch.empty_like(self.deviation)
        for i in range(len(covariance)):
            self._look(i)

    def join(self) -> None:
        """Make one unit of the two most correlated; ties go to the lower numbers."""
        a = int(self.best.argmax())
        a, b = sorted((a, int(self.other[a])))
        share = self.count[a] / (self.count[a] + self.count[b])
        self.covariance[a] = torch.lerp(self.covariance[b], self.covariance[a], share)
        self.covariance[:, a] = torch.lerp(self.covariance[:, b], self.covariance[:, a], share)
        self.deviation[a] = self.covariance[a, a].clamp_min(0).sqrt()
        self.count[a] += self.count[b]
        self.unit[self.unit == b] = a
        self.alive[b], self.best[b] = False, -torch.inf
        lost = self.alive & ((self.other == a) | (self.other == b))
        lost[a] = True
        row = self._correlation(a)
        closer = ~lost & self.alive & ((row > self.best) | ((row == self.best) & (a < self.other)))
        self.best[closer], self.other[closer] = row[closer], a
        for i in ints(torch.where(lost)[0]):
            self._look(i)

    def _look(self, i: int) -> None:
        row = self._correlation(i)
        self.other[i] = row.argmax()
        self.best[i] = row[self.other[i]]

    def _correlation(self, i: int) -> Tensor:
        """Return the correlation of unit i with the others; with one that never varies it is 0."""
        scale = self.deviation[i] * self.deviation
        row = torch.where(scale > 0, self.covariance[i] / scale, 0.0).where(self.alive, -torch.inf)
        row[i] = -torch.inf
        return row


def units(covariance: Tensor, left: int) -> Tensor:
    """Return which unit, 0 .. left - 1, each neuron is in when `left` of them are left.

    Args:
        covariance: [P, P] of the neurons, to any scale; it is overwritten.
        left: the number of units.
    """
    found = Units(covariance)
    for _ in range(len(covariance) - left):
        found.join()
    return (found.alive.cumsum(0) - 1)[found.unit]


def _expert(problem: Problem, group: Group, unit: Tensor) -> Experts:
    """Return the expert that a group's units [P] make."""
    members = problem.experts[group.members]
    wide, width = pool(problem, group), problem.experts.up.shape[1]
    count = torch.bincount(unit, minlength=width).double()

    def sums(rows: Tensor) -> Tensor:
        return rows.new_zeros(width, *rows.shape[1:], dtype=torch.float64).index_add_(0, unit, rows.double())

    first = {role: part[0] for role, part in wide.roles().items() if role not in {"down", "down_bias"}}
    means = {role: torch.einsum("k...,k->k...", sums(rows), 1 / count)[None] for role, rows in first.items()}
    bias = None if members.down_bias is None else members.down_bias.double().mean(0, keepdim=True)
    return Experts(**means, down=sums(wide.down[0].T).T[None] / len(members), down_bias=bias, norm=wide.norm)
