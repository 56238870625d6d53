"""Conjugate gradients for V (G + D) = B, all rows of V at once, preconditioned by the diagonal blocks of G.

V starts at 0, the prior, so the first direction is the solution of each group alone. Every row has its own step sizes.
With the residual R = B - V (G + D), the solve ends when |R| <= e |B| and |R|^2 / D <= e F, with B taken at the prior; e
is TOLERANCE, or ROUGH where a ridge is chosen. F = ||W P - Y||^2 + D |V|^2 is the objective; it exceeds its minimum by
R (G + D)^-1 R^T, at most |R|^2 / D.

Library routines do not fit: `scipy.sparse.linalg.cg` solves one right-hand side on the CPU, and its state cannot be
saved on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergemoe.moe.typed_torch import eigh, floats, norm

TOLERANCE, ROUGH = 1e-6, 1e-3
ROUNDING = 1e-13  # of the largest that Y P^T can be: what sums over tokens in float64 leave of a zero
ITERATIONS = 1000


@dataclass(frozen=True)
class Blocks:
    """G's diagonal blocks U L U^T: vectors U [M, P, P] and values L [M, P]; diagonal [M P] is G's."""

    vectors: Tensor
    values: Tensor
    diagonal: Tensor

    @classmethod
    def factor(cls, gram: Tensor) -> "Blocks":
        """Return the factors of G's diagonal blocks [M, P, P], which are overwritten."""
        values, diagonal = gram.new_zeros(gram.shape[:2]), gram.diagonal(dim1=1, dim2=2).flatten().clone()
        for i, block in enumerate(gram):
            found, vectors = eigh(block)
            values[i] = found.clamp_min(0)
            block.copy_(vectors)
        return cls(gram, values, diagonal)

    def solve(self, rows: Tensor, penalty: float) -> Tensor:
        """Return rows (G_block + D)^-1, [h, M P], from products in float32.

        This preconditions, which changes how fast the recursion is, not where it ends.
        """
        solved = torch.empty_like(rows)
        width = len(self.values[0])
        for i, (u, values) in enumerate(zip(self.vectors, self.values, strict=True)):
            own = slice(i * width, (i + 1) * width)
            short = u.float()
            solved[:, own] = (rows[:, own].float() @ short / (values + penalty).float()) @ short.T
        return solved


@dataclass
class Descent:
    """The state of conjugate gradients for some rows, at one D.

    deviation V, residual R, direction: [h, M P]. scale [2]: |B|, and a bound on |Y P^T|. objective [1]: F.
    iterations [1]: so far.
    """

    deviation: Tensor
    residual: Tensor
    direction: Tensor
    scale: Tensor
    objective: Tensor
    iterations: Tensor

    @classmethod
    def begin(cls, b: Tensor, bound: float) -> "Descent":
        """Return the state at V = 0; `restart` sets D."""
        scale = torch.tensor([norm(b), bound], dtype=torch.float64)
        none, first = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        return cls(torch.zeros_like(b), b, torch.zeros_like(b), scale, none, first)

    @property
    def relative(self) -> float:
        """Return |R| / |B|."""
        length = norm(self.residual)
        return length / float(self.scale[0]) if length else 0.0

    def restart(self, residual: Tensor, squared: float, blocks: Blocks, penalty: float) -> None:
        """Continue with another D, or with (Y - W P) P^T and ||W P - Y||^2 recomputed; `residual` is overwritten."""
        self.residual = residual.add_(self.deviation, alpha=-penalty)
        self.direction = blocks.solve(self.residual, penalty)
        self.objective.fill_(squared + penalty * float(self.deviation.square().sum()))

    def small(self, penalty: float, tolerance: float) -> bool:
        """Tell whether the residual is small enough to stop (see the module)."""
        size, bound = floats(self.scale)
        length = norm(self.residual)
        near = length <= tolerance * size and length**2 <= tolerance * penalty * float(self.objective)
        return near or length <= ROUNDING * bound

    def run(
        self,
        product: Callable[[Tensor], Tensor],
        blocks: Blocks,
        penalty: float,
        tolerance: float,
        each: Callable[[], None],
    ) -> bool:
        """Iterate until the residual of the recursion is small (True), or ITERATIONS are over (False).

        Args:
            product: V -> V G.
            blocks: G's.
            penalty: D > 0.
            tolerance: e (see the module).
            each: called after each iteration, when all fields are consistent.
        """
        power = _dot(self.residual, blocks.solve(self.residual, penalty))
        while not self.small(penalty, tolerance):
            if int(self.iterations) >= ITERATIONS:
                return False
            image = product(self.direction).add_(self.direction, alpha=penalty)
            step = _ratio(power, _dot(self.direction, image))
            self.objective -= float(step @ power)
            self.deviation.addcmul_(step[:, None], self.direction)
            self.residual.addcmul_(step[:, None], image, value=-1)
            del image
            ahead = blocks.solve(self.residual, penalty)
            before, power = power, _dot(self.residual, ahead)
            self.direction.mul_(_ratio(power, before)[:, None]).add_(ahead)
            del ahead
            self.iterations += 1
            each()
        return True


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("hn,hn->h", a, b)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0.0)  # a row without a residual stays where it is
