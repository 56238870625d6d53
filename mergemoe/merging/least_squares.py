"""Least squares for a down-projection, from sums over tokens.

Letters as in MergeMoE (arXiv 2510.14436): P are the features of the merged expert, Y its target output. The paper has
one column per token; the code has one row per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergemoe.moe.finite import check_finite
from mergemoe.moe.typed_torch import cholesky, eigh, eigvalsh, floats

BLOCK = 256  # rows of P P^T that are one product
ROUNDINGS = 8  # of float32 in a product over a chunk of tokens: the root of those that a sum goes through


def add_lower(gram: Tensor, p: Tensor) -> None:
    """Add P P^T of p [n, I] to gram [I, I] at and left of the blocks on the diagonal, half of the arithmetic."""
    for start in range(0, len(gram), BLOCK):
        end = start + BLOCK
        gram[start:end, :end].addmm_(p[:, start:end].T, p[:, :end])


def mirror(gram: Tensor) -> None:
    """Copy the half of gram [I, I] below the diagonal to that above it."""
    for start in range(0, len(gram), BLOCK):
        end = start + BLOCK
        gram[:start, start:end] = gram[start:end, :start].T
        lower = gram[start:end, start:end].tril()
        gram[start:end, start:end] = lower + lower.tril(-1).T


@dataclass
class Moments:
    """Float64 sums over the tokens of G least squares of one shape; they are enough, so no activation is kept.

    gram [G, I, I] = P P^T, cross [G, H, I] = Y P^T, energy [G] = ||Y||^2, tokens [G].
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, width: int, hidden_size: int, device: torch.device | str = "cpu", stack: int = 1) -> "Moments":
        """Return the sums over no tokens."""
        gram, cross, energy = (
            torch.zeros(stack, *shape, dtype=torch.float64, device=device)
            for shape in ((width, width), (hidden_size, width), ())
        )
        return cls(gram, cross, energy, torch.zeros(stack, dtype=torch.int64, device=device))

    @classmethod
    def stacked(cls, parts: "Sequence[Moments]") -> "Moments":
        """Return the sums of all parts one after the other."""
        return cls(*(torch.cat(sums) for sums in zip(*(vars(part).values() for part in parts), strict=True)))

    def split(self) -> "list[Moments]":
        """Return each least squares' own, as stacks of one."""
        return [Moments(*parts) for parts in zip(*(sums.split(1) for sums in vars(self).values()), strict=True)]

    def add(self, p: Tensor, y: Tensor, which: Sequence[int]) -> None:
        """Add features p [b, n, I] and targets y [b, n, H] to some of the sums; the caller counts the tokens.

        Of gram, only the lower half is right before `complete`.
        """
        for place, own_p, own_y in zip(which, p, y, strict=True):
            add_lower(self.gram[place], own_p)
            self.cross[place].addmm_(own_y.T, own_p)
        self.energy[which] += y.square().sum((1, 2))

    def complete(self) -> None:
        """Give gram its upper half, when all is added."""
        for gram in self.gram:
            mirror(gram)

    def squared(self, w: Tensor) -> Tensor:
        """Return ||W P - Y||^2 [G] of W [G, H, I].

        It is a difference of sums: below about 1e-14 of the energy it means zero.
        """
        return (self.energy + self.change(w)).clamp_min(0)

    def change(self, w: Tensor) -> Tensor:
        """Return ||W P - Y||^2 - ||Y||^2 [G] of W [G, H, I]."""
        return ((w @ self.gram) * w).sum((1, 2)) - 2 * (w * self.cross).sum((1, 2))

    def mixed(self, mixtures: Tensor | None) -> "Moments":
        """Return the sums for the targets S Y of S [s, H], but for their energy; all sums without S."""
        return self if mixtures is None else replace(self, cross=mixtures @ self.cross)

    def relative_errors(self, w: Tensor) -> list[float | None]:
        """Return ||W P - Y||^2 / ||Y||^2 of each; None without tokens."""
        pairs = zip(floats(self.squared(w)), floats(self.energy), strict=True)
        return [squared / energy if energy else None for squared, energy in pairs]


@dataclass(frozen=True)
class NormalEquations:
    """Sums over the tokens of one least squares, in float64: gram [I, I] = P P^T, cross [H, I] = Y P^T.

    spread [I]: of each column of Y P^T, the sum of ||y_h||^2 ||p_i||^2 over h, if the terms of Y did not cancel.
    """

    gram: Tensor
    cross: Tensor
    tokens: int
    spread: Tensor

    def excess(self, inverse: Tensor, down: Tensor) -> float:
        """Return the addition to ||W P - Y||^2 by float32 products in Y P^T, as a share of ||W P||^2.

        Each entry at h, i of Y P^T has an error of about ROUNDINGS u ||y_h|| ||p_i||, u = 2^-24, which the solution
        multiplies by (G + D)^+, here `inverse` [I], its diagonal.
        """
        explained = float((down * self.cross).sum())
        added = (ROUNDINGS * 2.0**-24) ** 2 * float((self.spread * inverse).sum())
        return added / explained if explained > 0 else 0.0 if added == 0 else float("inf")


@dataclass(frozen=True)
class Solution:
    """A down-projection [H, I] and how well the tokens pin it down.

    rank: eigenvalues of P P^T above the tolerance; effective_rank: exp of the entropy of their shares (Roy and
    Vetterli, 2007); condition: of P P^T over those eigenvalues, the square of P's; infinite never, None at rank 0;
    excess: NormalEquations.excess.
    """

    down: Tensor
    tokens: int
    rank: int
    effective_rank: float
    condition: float | None
    excess: float


def solve_down(sums: NormalEquations, penalty: float) -> Solution:
    """Return W = argmin ||W P - Y||^2 + D ||W||^2 = Y P^T (P P^T + D)^+; `penalty` is D.

    With Y = W_D' Q this is W_D' T1, T1 = Q P^+ (arXiv 2510.14436, eq. 6), because T1 itself is the least-squares
    map from P to Q. At penalty 0 and full row rank it is the paper's formula; without full row rank, it is the solution
    of least norm, as the pseudo-inverse gives it. Directions whose eigenvalue is below 10 I eps times the largest
    (P's singular value below about 5e-7 of its largest, at I = 128) cannot be told from rounding and count as missing.

    Raises:
        ValueError: if `penalty` is negative.
        UserError: if the sums are not finite.
    """
    if penalty < 0:
        raise ValueError(f"penalty must be >= 0, got {penalty}")
    check_finite("sums over features and outputs of experts", sums.gram, sums.cross)
    values = eigvalsh(sums.gram)
    kept = values[values > tolerance(values[None])[0]]
    factor, failed = cholesky(sums.gram + penalty * torch.eye(len(values), dtype=values.dtype, device=values.device))
    if len(kept) == len(values) and not failed:  # an eigendecomposition takes twice as long
        down = torch.cholesky_solve(sums.cross.mT, factor).mT
        inverse = torch.cholesky_inverse(factor).diagonal()
    else:
        values, vectors = eigh(sums.gram)
        present = values > tolerance(values[None])[0]
        inverses = torch.where(present | (penalty > 0), 1 / (values.clamp_min(0) + penalty), 0.0)
        down = (sums.cross @ vectors * inverses) @ vectors.mT
        inverse = vectors.square() @ inverses
    condition = float(kept[-1] / kept[0]) if len(kept) else None
    rank = entropy_rank(kept / kept.sum())
    return Solution(down, sums.tokens, len(kept), rank, condition, sums.excess(inverse, down))


def effective_rank(gram: Tensor) -> float:
    """Return the entropy_rank of all eigenvalues above 0; solve_down counts only those above the tolerance."""
    values = eigvalsh(gram).clamp_min(0)
    return entropy_rank(values[values > 0] / values.sum() if len(values) and values.sum() > 0 else values[:0])


def entropy_rank(shares: Tensor) -> float:
    """Return exp of the entropy of the eigenvalues' shares [r] (Roy and Vetterli, 2007); 0 if there are none."""
    return float((-(shares * shares.log()).sum()).exp()) if len(shares) else 0.0


def tolerance(values: Tensor) -> Tensor:
    """Return, of ascending eigenvalues [G, I], the bound [G, 1] below which one cannot be told from rounding."""
    return 10 * values.shape[1] * torch.finfo(torch.float64).eps * values[:, -1:]
