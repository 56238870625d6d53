"""Least squares for a down-projection, from sums over tokens.

Letters as in MergeMoE (arXiv 2510.14436): P is what the merged expert computes before its down-projection, Y
what it should put out; one column per token there, one row per token here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running float64 sums over tokens: all that least squares needs, so no activation is kept.

    gram [I, I] = P P^T, cross [H, I] = Y P^T, energy = ||Y||^2.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    tokens: int = 0

    @classmethod
    def zeros(cls, width: int, hidden_size: int, device: torch.device | str = "cpu") -> "Moments":
        """Return the sums over no tokens."""
        options = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(width, width, **options), torch.zeros(hidden_size, width, **options))

    def add(self, p: Tensor, y: Tensor) -> None:
        """Add tokens: features p [n, I] and targets y [n, H]."""
        p, y = p.double(), y.double()
        self.gram += p.T @ p
        self.cross += y.T @ p
        self.energy += float(y.square().sum())
        self.tokens += len(p)

    def error(self, w: Tensor) -> float | None:
        """Return ||W P - Y||^2 / ||Y||^2; None without tokens.

        It is a difference of sums: below about 1e-14 it means zero.
        """
        if self.energy == 0:
            return None
        squared = self.energy - 2 * float((w * self.cross).sum()) + float(((w @ self.gram) * w).sum())
        return max(squared, 0.0) / self.energy  # in this order a NaN stays one


@dataclass(frozen=True)
class Solution:
    """A down-projection [H, I] and how well the tokens pin it down.

    rank: eigenvalues of P P^T above the tolerance; effective_rank: exp of the entropy of their shares (Roy and
    Vetterli, 2007); condition: of P P^T over those eigenvalues, the square of P's; infinite never, None at rank 0.
    """

    down: Tensor
    rank: int
    effective_rank: float
    condition: float | None


def solve_down(moments: Moments, ridge: float) -> Solution:
    """Return W = argmin ||W P - Y||^2 + D ||W||^2 = Y P^T (P P^T + D)^+, D = ridge * mean(diag(P P^T)).

    With Y = W_D' Q this is W_D' T1, T1 = Q P^+ (arXiv 2510.14436, eq. 6), because T1 itself is the least-squares
    map from P to Q. At ridge 0 and full row rank it is the paper's formula; where rank is missing, it is the solution
    of least norm, as the pseudo-inverse gives it. Directions whose eigenvalue is below 10 I eps times the largest
    (P's singular value below about 5e-7 of its largest, at I = 128) cannot be told from rounding and count as missing.

    Raises:
        ValueError: where `ridge` is negative, or the sums are not finite.
    """
    if ridge < 0:
        raise ValueError(f"ridge must be >= 0, got {ridge}")
    if not (moments.gram.isfinite().all() and moments.cross.isfinite().all()):
        raise ValueError("the sums hold NaN or infinity: look at the captured activations, not here")
    values, vectors = torch.linalg.eigh(moments.gram)
    largest = float(values[-1])
    tolerance = 10 * len(values) * torch.finfo(torch.float64).eps * largest
    present = values > tolerance
    damping = ridge * float(moments.gram.diagonal().mean())
    inverse = torch.where(present | (damping > 0), 1 / (values.clamp_min(0) + damping), 0.0)
    down = (moments.cross @ vectors * inverse) @ vectors.T
    kept = values[present]
    share = kept / kept.sum()
    return Solution(
        down=down,
        rank=int(present.sum()),
        effective_rank=math.exp(-float((share * share.log()).sum())) if len(kept) else 0.0,
        condition=largest / float(kept[0]) if len(kept) else None,
    )
