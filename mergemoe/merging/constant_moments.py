"""The sums of MergeMoE's least squares: over all fitted tokens, with one weight w_j for each member of a group.

P are the features of the usage-weighted mean expert. Its projections are the means of the members' own, so they cost no
product. The target is Y = sum_j w_j W_D^j H_j, H_j being the features of member j. It is never computed, because

    Y P^T = sum_j w_j W_D^j (H_j P^T)

needs one product of I x I numbers per member and token instead of one of H x I, and the down-projections once.

P P^T is summed in float64, because the solution divides by its eigenvalues. H_j P^T is multiplied in float32, a chunk
at a time, and the chunks are added in float64; NormalEquations.excess tells what that does to the solution.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergemoe.merging.least_squares import NormalEquations, add_lower, mirror
from mergemoe.moe.expert_forward import projections, with_one
from mergemoe.moe.experts import down_of
from mergemoe.moe.problem import Group, Problem
from mergemoe.moe.typed_torch import floats

BYTES = 1 << 28  # of the sums that one pass over the tokens fills
ROWS = 1 << 13  # tokens times members whose features are in memory


def constant_sums(problem: Problem, groups: Sequence[Group], exact: bool = False) -> Iterator[NormalEquations]:
    """Yield the sums of one group after the other.

    Args:
        problem: the layer.
        groups: any.
        exact: whether W_D^j (H_j P^T) are products in float64, too.
    """
    for part in _passes(problem, groups):
        sums = [_GroupSums(problem, group, exact) for group in part]
        for tokens in problem.chunks(heldout=False):
            for own in sums:
                for x in torch.split(tokens.hidden, max(ROWS // len(own.group.members), 1)):
                    own.add(x)
        yield from (own.equations() for own in sums)


def _passes(problem: Problem, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield groups whose sums have room together."""
    width = down_of(problem.experts[[0]]).shape[1]
    held: list[Group] = []
    room = BYTES
    for group in groups:
        needed = 8 * width**2 * (len(group.members) + 1)
        if held and needed > room:
            yield held
            held, room = [], BYTES
        held.append(group)
        room -= needed
    if held:
        yield held


class _GroupSums:
    """What the tokens of a pass add up for a group of c members, in float64.

    gram [P, P] is the lower half of P P^T; products [c, P, P] are H_j P^T; energies [c, P] ||h_jk||^2.
    """

    def __init__(self, problem: Problem, group: Group, exact: bool):
        """Start without tokens."""
        self.problem, self.group, self.exact, self.tokens = problem, group, exact, 0
        self.weights = floats(group.weights)
        size, width = len(group.members), down_of(problem.experts[[0]]).shape[1]
        self.gram, self.products, self.energies = (
            torch.zeros(*shape, dtype=torch.float64, device=problem.experts.up.device)
            for shape in ((width, width), (size, width, width), (size, width))
        )

    def add(self, x: Tensor) -> None:
        """Add some tokens [n, H]."""
        members, p = self._features(x)
        double = p.double()
        add_lower(self.gram, double)
        for product, energies, h in zip(self.products, self.energies, members, strict=True):
            product += h.double().T @ double if self.exact else h.T @ p
            energies += h.square().sum(0)
        self.tokens += len(x)

    def _features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return H_j [n, P] of each member, and P [n, P]."""
        experts, act = self.problem.experts, self.problem.act
        projected = [projections(x, experts, member) for member in self.group.members]
        members = [with_one(act(up, gate), experts) for up, gate in projected]
        ups, gates = zip(*projected, strict=True)
        return members, with_one(act(self._mean(ups), None if experts.gate is None else self._mean(gates)), experts)

    def _mean(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the usage-weighted mean of the members' projections, in the place of the first."""
        mean = parts[0].mul_(self.weights[0])
        for w, part in zip(self.weights[1:], parts[1:], strict=True):
            mean.add_(part, alpha=w)
        return mean

    def equations(self) -> NormalEquations:
        """Return the normal equations over the tokens so far."""
        experts = self.problem.experts
        dtype = torch.float64 if self.exact else experts.down.dtype
        mirror(self.gram)
        cross = self.gram.new_zeros(experts.down.shape[1], len(self.gram))
        spread = 0.0
        for w, member, product, energies in zip(
            self.weights, self.group.members, self.products, self.energies, strict=True
        ):
            down = w * down_of(experts[[member]])
            cross += down.to(dtype) @ product.to(dtype)
            spread += float((down.square() * energies).sum())
        return NormalEquations(self.gram, cross, self.tokens, spread * self.gram.diagonal())
