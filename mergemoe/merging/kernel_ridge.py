"""The joint solve in its dual form, for fewer tokens than unknowns (Saunders et al., 1998).

    W = W0 + (Y - W0 P)(P^T P + D)^+ P^T,   D = lambda median(diag(P P^T))

is the solution of ridge_regression.py, because (P P^T + D)^-1 P = P (P^T P + D)^-1. The kernel P^T P has a row per
token instead of one per column of W. P, Y and D are as there; all groups' routed features are side by side.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mergemoe.merging import output_mixtures, ridge_regression
from mergemoe.merging.routed_features import RoutedFeatures
from mergemoe.moe.experts import Experts, down_of

ROWS = 1024  # of the kernel that are one product


def bytes_needed(passes: RoutedFeatures) -> float:
    """Return the bytes that the solve holds besides the experts and the solution; infinite if no features are kept."""
    fit, heldout = (passes.count(part) for part in (False, True))
    states = 8 * (2 * (fit + heldout) + fit) * passes.hidden  # residual, what it is made of, and the solution per token
    return passes.bytes + 8 * ((fit + heldout) ** 2 + 2 * fit**2) + states if passes.bytes else float("inf")


def fit(passes: RoutedFeatures, experts: Sequence[Experts], ridge: float | Literal["auto"]) -> ridge_regression.Fit:
    """Return the joint solution W [1, H, M P].

    Args:
        passes: the layer's routed features, kept.
        experts: one per group, with the prior as down-projection.
        ridge: as in ridge_regression.fit.

    Raises:
        UserError: as ridge_regression.fit.
    """
    downs, count = [down_of(expert) for expert in experts], passes.count(heldout=False)
    targets = [torch.cat([y for _, y in passes.remembered(part)]) for part in (False, True) if passes.count(part)]
    energy = float(targets[1].square().sum()) if len(targets) > 1 else 0.0
    residual = torch.cat(targets)
    del targets
    kernel = residual.new_zeros(len(residual), len(residual))
    energies: list[Tensor] = []
    for group, down in enumerate(downs):
        rows, p = _group(passes, group)
        residual[rows] -= p @ down.T
        _add_lower(kernel, rows, p)
        energies.append(p[rows < count].square().sum(0))
    _mirror(kernel)
    scale = ridge_regression.typical_energy(torch.cat(energies))
    ridges = ridge_regression.candidates(ridge, len(residual) - count, energy)
    inner, outer = kernel[None, :count, :count], kernel[:count, count:]
    best, tried = ridges[0], dict[float, float]()
    if len(ridges) > 1:
        mixtures = output_mixtures.mixtures(residual.shape[1], residual.device)
        mixed = residual if mixtures is None else residual @ mixtures.T
        for candidate in sorted(ridges, reverse=True):
            found = ridge_regression.damped_solution(inner, mixed[None, :count].mT, candidate * scale)[0]
            tried[candidate] = float((mixed[count:].T - found @ outer).square().sum())
            if tried[candidate] > ridge_regression.RISEN * min(tried.values()):
                break
        best = min(sorted(tried), key=lambda candidate: tried[candidate])
    found = ridge_regression.damped_solution(inner, residual[None, :count].mT, best * scale)[0]
    exact = float((residual[count:].T - found @ outer).square().sum())
    del kernel, inner, outer, residual
    for group, down in enumerate(downs):
        rows, p = _group(passes, group)
        own = rows < count
        downs[group] = down + found[:, rows[own]] @ p[own]
    solved = torch.cat(downs, 1)[None]
    if len(ridges) == 1:
        return ridge_regression.Fit(solved, best, None)
    ascending = {candidate: tried[candidate] for candidate in sorted(tried)}
    return ridge_regression.Fit(
        solved, best, ridge_regression.errors_of_ridges(ascending, best, exact / energy, energy)
    )


def _group(passes: RoutedFeatures, group: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of a group, ascending, held-out ones after all fitted ones, and their features [r, P]."""
    rows: list[Tensor] = []
    features: list[Tensor] = []
    start = 0
    for heldout in (False, True):
        for parts, y in passes.remembered(heldout):
            rows.append(parts[group].rows + start)
            features.append(parts[group].weighted())
            start += len(y)
    return torch.cat(rows), torch.cat(features)


def _add_lower(kernel: Tensor, rows: Tensor, p: Tensor) -> None:
    """Add P^T P of some tokens to the kernel, at and left of the blocks on the diagonal."""
    for start in range(0, len(rows), ROWS):
        end = start + ROWS
        kernel[rows[start:end, None], rows[:end]] += p[start:end] @ p[:end].T


def _mirror(kernel: Tensor) -> None:
    """Copy the lower half to the upper one."""
    for start in range(0, len(kernel), ROWS):
        end = start + ROWS
        kernel[:start, start:end] = kernel[start:end, :start].T
        lower = kernel[start:end, start:end].tril()
        kernel[start:end, start:end] = lower + lower.tril(-1).T
