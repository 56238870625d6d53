"""The joint solve in its dual form, for fewer tokens than unknowns (Saunders et al., 1998).

    W = W0 + (Y - W0 P)(P^T P + D)^+ P^T,   D = lambda median(diag(P P^T))

is the solution of ridge_regression.py, because (P P^T + D)^-1 P = P (P^T P + D)^-1. The kernel P^T P has a row per
token instead of one per column of W. P, Y and D are as there; all groups' routed features are side by side.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mergemoe.joint_solves.routed_features import RoutedFeatures
from mergemoe.merging import output_mixtures, ridge_regression
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.finite import check_finite
from mergemoe.moe.typed_torch import cholesky_in_place, solve_factored

ROWS = 1024  # of the kernel that are one product
ROUNDING = 1e-4  # share of D; the objective then exceeds its minimum by less than 1e-6


def bytes_needed(passes: RoutedFeatures) -> float:
    """Return the bytes that the solve holds besides the experts and the solution; infinite if no features are kept."""
    fitted, heldout, width = passes.count(heldout=False), passes.count(heldout=True), passes.width
    count = fitted + heldout
    # The kernel and a factor; residuals, two triangular solves and their mixtures; features of a group in float64.
    held = 8 * (count * fitted + fitted**2 + count * (4 * passes.hidden + 4 * width))
    return passes.bytes + held if passes.bytes else math.inf


def fit(
    passes: RoutedFeatures, experts: Sequence[Experts], ridge: float | Literal["auto"], memory: float
) -> ridge_regression.Fit | None:
    """Return the joint solution W [1, H, M P]; None if it does not fit, or rounding would blur it.

    The kernel mixes the energies of all neurons, so its rounding, eps times its trace, must be far less than D.

    Args:
        passes: the layer's routed features, kept.
        experts: one per group, with the prior as down-projection.
        ridge: as in ridge_regression.fit; at 0 it is None.
        memory: GB that may be held besides the experts and the solution.

    Raises:
        UserError: as ridge_regression.fit.
    """
    if ridge == 0 or bytes_needed(passes) > memory * 1e9:
        return None
    downs, count = [down_of(expert) for expert in experts], passes.count(heldout=False)
    energy = sum(float(y.square().sum()) for _, y in passes.remembered(heldout=True))
    ridges = ridge_regression.candidates(ridge, passes.count(heldout=True), energy)
    energies = torch.cat([_group(passes, group, heldout=False)[1].square().sum(0) for group in range(len(downs))])
    scale = ridge_regression.typical_energy(energies)
    if torch.finfo(torch.float64).eps * float(energies.sum()) > ROUNDING * min(ridges) * scale:
        return None
    residual = torch.cat([y for part in (False, True) for _, y in passes.remembered(part)])
    kernel = residual.new_zeros(len(residual), count)
    for group, down in enumerate(downs):
        rows, p = _group(passes, group)
        residual[rows] -= p @ down.T
        _add_lower(kernel, rows, p)
    check_finite("sums over features and outputs of experts", kernel, residual)
    best, tried = ridges[0], dict[float, float]()
    if len(ridges) > 1:
        mixtures = output_mixtures.mixtures(residual.shape[1], residual.device)
        mixed = residual if mixtures is None else residual @ mixtures.T
        for candidate in sorted(ridges, reverse=True):
            found = _damped_solution(kernel[:count], mixed[:count], candidate * scale)
            if found is None:
                return None
            tried[candidate] = float((mixed[count:] - kernel[count:] @ found).square().sum())
            if tried[candidate] > ridge_regression.RISEN * min(tried.values()):
                break
        best = min(sorted(tried), key=lambda candidate: tried[candidate])
    found = _damped_solution(kernel[:count], residual[:count], best * scale)
    if found is None:
        return None
    exact = float((residual[count:] - kernel[count:] @ found).square().sum())
    del kernel, residual
    for group, down in enumerate(downs):
        rows, p = _group(passes, group, heldout=False)
        downs[group] = down + found[rows].T @ p
    solved = torch.cat(downs, 1)[None]
    if len(ridges) == 1:
        return ridge_regression.Fit(solved, best, None)
    ascending = {candidate: tried[candidate] for candidate in sorted(tried)}
    return ridge_regression.Fit(
        solved, best, ridge_regression.errors_of_ridges(ascending, best, exact / energy, energy)
    )


def _group(passes: RoutedFeatures, group: int, heldout: bool = True) -> tuple[Tensor, Tensor]:
    """Return the fitted tokens of a group, ascending, after them those held out, and their features [r, P]."""
    rows: list[Tensor] = []
    features: list[Tensor] = []
    start = 0
    for part in (False, True)[: 1 + heldout]:
        for parts, y in passes.remembered(part):
            rows.append(parts[group].rows + start)
            features.append(parts[group].weighted())
            start += len(y)
    return torch.cat(rows), torch.cat(features)


def _add_lower(kernel: Tensor, rows: Tensor, p: Tensor) -> None:
    """Add P^T P of some tokens to the kernel, at and left of the blocks on the diagonal; it has no held-out columns."""
    fitted = int((rows < kernel.shape[1]).sum())
    for start in range(0, len(rows), ROWS):
        end = start + ROWS
        until = min(end, fitted)
        kernel[rows[start:end, None], rows[:until]] += p[start:end] @ p[:until].T


def _damped_solution(kernel: Tensor, residual: Tensor, penalty: float) -> Tensor | None:
    """Return (P^T P + D)^-1 R [T, m] of the lower triangle of P^T P and R [T, m]; None if rounding leaves no factor."""
    factor = kernel.clone()
    factor.diagonal().add_(penalty)
    return None if cholesky_in_place(factor) else solve_factored(factor, residual)
