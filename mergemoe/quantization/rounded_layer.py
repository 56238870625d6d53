"""A layer whose experts compute with rounded weights, while gradients go to the weights behind them.

    W' = round(W) on its grid,    dL/dW := dL/dW'

This is the straight-through estimator (Bengio et al., arXiv 1308.3432). A weight moves in small steps and its rounded
value jumps when it has passed the middle between two values of the grid. The grids stay as they are.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.quantization.grids import Grid
from mergemoe.reconstruction.objective import Approximation


class RoundedLayer(Approximation):
    """An approximation whose experts are always on their grids."""

    def __init__(self, problem: Problem, solved: Mapping[str, Tensor], grids: Mapping[str, Grid]):
        """Take the experts out of a solved layer; the roles of `grids` are rounded and fitted.

        Args:
            problem: the layer.
            solved: its tensors, with all M experts, anywhere between the values of their grids.
            grids: {role: grid [M, R, C / group]}.
        """
        super().__init__(problem, solved, list(grids))
        self.grids = grids

    def stored(self) -> list[Experts]:
        """Return the experts with the nearest values of their grids."""
        return [self._rounded(expert, place) for place, expert in enumerate(self.experts)]

    def _rounded(self, expert: Experts, place: int) -> Experts:
        parts = expert.roles()
        return replace(expert, **{role: self._nearest(role, place, parts[role]) for role in self.grids})

    def _nearest(self, role: str, place: int, weights: Tensor) -> Tensor:
        grid, latent = self.grids[role], weights.detach()
        one = Grid(*(part[place] for part in grid))
        nearest = one.nearest(latent.reshape(*one.scale.shape, -1)).view_as(latent)
        return nearest + (weights - latent)  # exactly the nearest value, with the gradient of the weights
