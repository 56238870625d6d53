"""Ridge regression toward a prior: an expert with few tokens keeps what it had.

    W = argmin ||W P - Y||^2 + D ||W - W0||^2 = W0 + (C - W0 G)(G + D)^+,   D = lambda median(diag(G))

G = P P^T and C = Y P^T are the moments. The prior W0 is each neuron's own column for selected neurons, and the averaged
down-projection for averaged features. The median is over all features of the layer that fire, so neither one massive
activation nor a rare group moves it (docs/log.md compares other scales). At lambda 0 the result is the solution nearest
to W0.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.merging import output_mixtures
from mergemoe.merging.least_squares import Moments, effective_rank, tolerance
from mergemoe.moe.finite import check_finite
from mergemoe.moe.records import Diagnosis, MethodRecord
from mergemoe.moe.typed_torch import cholesky, eigh

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
RISEN = 1.02  # times the least error: where the solve of one takes long, smaller values are not tried


@dataclass(frozen=True)
class Fit:
    """Down-projections [G, H, P], their lambda, and {lambda: error on held-out tokens} if it was chosen by that."""

    downs: Tensor
    ridge: float
    tried: dict[str, float] | None

    def ridge_record(self) -> MethodRecord:
        """Return the ridge, and the errors that it was chosen by, for the record of the solve."""
        if not self.tried:
            return {"ridge": self.ridge}
        return {"ridge": self.ridge, "heldout_error_by_ridge": self.tried}


def fit(fitted: Moments, unseen: Moments, priors: Tensor, ridge: float | Literal["auto"], heldout: int) -> Fit:
    """Solve G least squares with one lambda.

    Args:
        fitted: the sums over the fitted tokens.
        unseen: the same over the held-out tokens, which `auto` chooses by.
        priors: W0 [G, H, P].
        ridge: lambda >= 0; `auto` takes the one of GRID that leaves the least squared error on held-out tokens.
        heldout: held-out tokens of the layer, whether they reach these groups or not.

    Raises:
        UserError: if `auto` has no held-out token to choose by.
    """
    scale = typical_energy(fitted.gram.diagonal(dim1=1, dim2=2))
    energy = float(unseen.energy.sum())
    ridges = candidates(ridge, heldout, energy)
    tried = dict.fromkeys(ridges, 0.0)
    if len(ridges) > 1:
        mixtures = output_mixtures.mixtures(priors.shape[1], priors.device)
        mixed_fitted, mixed_unseen = fitted.mixed(mixtures), unseen.mixed(mixtures)
        own = priors.double() if mixtures is None else mixtures @ priors.double()
        solutions = solve_each(mixed_fitted, own, [candidate * scale for candidate in ridges])
        tried = {r: float(mixed_unseen.change(downs).sum()) for r, downs in zip(ridges, solutions, strict=True)}
    best = min(ridges, key=lambda candidate: tried[candidate])
    downs = solve_toward_prior(fitted, priors, best * scale)
    if len(ridges) == 1:
        return Fit(downs, best, None)
    exact = float(unseen.squared(downs).sum()) / energy
    return Fit(downs, best, errors_of_ridges(tried, best, exact, energy))


def errors_of_ridges(squared: Mapping[float, float], best: float, exact: float, energy: float) -> dict[str, float]:
    """Return {lambda: ||W P - Y||^2 / ||Y||^2} over the held-out tokens.

    Args:
        squared: of each lambda ||W P - Y||^2, up to a constant; estimates if it is of mixtures, infinite if not tried.
        best: the lambda that was chosen.
        exact: its error.
        energy: ||Y||^2.
    """
    differences = {r: (each - squared[best]) / energy for r, each in squared.items() if each < math.inf}
    return {f"{r:g}": max(exact + difference, 0.0) for r, difference in differences.items()}


def candidates(ridge: float | Literal["auto"], heldout: int, energy: float) -> list[float]:
    """Return the lambdas to choose from: one that was given, or for `auto` all of GRID.

    If no held-out token reaches the experts, they are rarely used, and `auto` takes the largest lambda.

    Args:
        ridge: as in params.yaml.
        heldout: held-out tokens of the layer.
        energy: the sum of ||Y||^2 over those that reach the experts.

    Raises:
        UserError: if `auto` has no held-out token to choose by.
    """
    if ridge != "auto":
        return [ridge]
    if not heldout:
        raise UserError(
            "`ridge: auto` chooses by held-out calibration tokens, and there are none: set `holdout` of `calibrate` "
            "above 0, or give `ridge` a number such as 0.01"
        )
    if energy:
        return list(GRID)
    logging.getLogger(__name__).warning(
        "no held-out token reaches these experts: `ridge: auto` takes %g, its largest value", GRID[-1]
    )
    return [GRID[-1]]


def typical_energy(energies: Tensor) -> float:
    """Return the median of diag(G) over all features that fire; 0 if none does."""
    fires = energies[energies > 0]
    return float(fires.median()) if len(fires) else 0.0


def solve_toward_prior(moments: Moments, priors: Tensor, penalty: float) -> Tensor:
    """Return W [G, H, P], in float64; `penalty` is D, `priors` are W0 [G, H, P]."""
    return next(solve_each(moments, priors, [penalty]))


def solve_each(moments: Moments, priors: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    """Yield W of each penalty.

    Raises:
        ValueError: if one is negative.
        UserError: if the sums are not finite.
    """
    if min(penalties) < 0:
        raise ValueError(f"a ridge must be >= 0, got one of {min(penalties)}")
    check_finite("sums over features and outputs of experts", moments.gram, moments.cross)
    priors = priors.double()
    residual = moments.cross - priors @ moments.gram
    for penalty in penalties:
        yield priors + damped_solution(moments.gram, residual, penalty)


def damped_solution(gram: Tensor, residual: Tensor, penalty: float) -> Tensor:
    """Return R (G + D)^+ [G, H, P] of the residuals R [G, H, P], gram G [G, P, P] and the penalty D."""
    damped = gram.clone()
    damped.diagonal(dim1=1, dim2=2).add_(penalty)
    if penalty > 0:
        factor, failed = cholesky(damped)
        if not failed.any():  # a penalty below rounding is none
            return torch.cholesky_solve(residual.mT, factor).mT
    values, vectors = eigh(damped)
    kept = torch.where(values > tolerance(values), 1 / values, 0.0)
    return (residual @ vectors * kept[:, None]) @ vectors.mT


def diagnose_tokens(tokens: int, needed: int, what: str, gram: Tensor | None = None) -> Diagnosis:
    """Return the tokens and unknowns of a solve; warn if there are fewer than two tokens for each unknown.

    The effective rank is None if no Gram is given.
    """
    if tokens < 2 * needed:
        logging.getLogger(__name__).warning(
            "%s: %d tokens for %d unknowns per output row; fewer than two per unknown fit noise. Raise `samples` of "
            "`calibrate`",
            what, tokens, needed,
        )  # fmt: skip
    rank = None if gram is None else effective_rank(gram)
    return {"tokens": tokens, "unknowns": needed, "effective_rank": rank}
