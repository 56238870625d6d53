"""The joint solve by conjugate gradients, for layers whose sums do not fit into memory.

    V (G + D) = B,   V = W - W0,   B = (Y - W0 P) P^T,   G = P P^T

W [H, M I'] are all down-projections of the layer side by side, W0 their prior, P the routed features, Y the layer's
output, and D the penalty. G [M I', M I'] is never formed: V G = (V P) P^T is one pass over the tokens, each of which
uses few groups. The solve holds VECTORS times V and the diagonal blocks of G. If V is too large for that, its rows are
solved in several parts, because each row is a problem of its own. The scratch folder holds the diagonal blocks, the
state of the current rows and the solutions found, so a killed solve loses only what it did since the last save.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mergemoe.artifacts import store
from mergemoe.errors import UserError
from mergemoe.merging import conjugate_gradients, ridge_regression, solver_state
from mergemoe.merging.conjugate_gradients import Blocks, Descent
from mergemoe.merging.layer_output import layer_error, layer_features, layer_output, layer_target
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.problem import Problem
from mergemoe.moe.records import MethodRecord
from mergemoe.progress import Progress

VECTORS = 8  # of the size of the rows that are solved at once
SAVE_EVERY = 60.0  # seconds


def fit(
    problem: Problem, experts: Sequence[Experts], ridge: float | Literal["auto"], memory: float
) -> tuple[ridge_regression.Fit, MethodRecord]:
    """Return the joint solution W [H, M P], and for the record its errors, iterations and relative residual.

    Args:
        problem: the layer; with `problem.scratch` a killed solve continues from there.
        experts: one per group, with the prior as down-projection.
        ridge: as in ridge_regression.fit, but above 0.
        memory: GB that may be held besides the experts and the solution.

    Raises:
        UserError: if `memory` is less than one row takes, `ridge` is 0, or the iterations do not converge.
    """
    if ridge == 0:
        raise UserError(
            "`ridge: 0` takes of all best solutions the one nearest to the prior, which only the direct joint solve "
            f"finds, and `memory: {memory:g}` is too small for that: give `ridge` a number above 0 such as 0.001, or "
            "raise `memory`"
        )
    hidden, width = down_of(experts[0]).shape
    slabs = row_slabs(hidden, width, len(experts), memory)
    with solver_state.solver_folder(problem.scratch) as folder:
        blocks, energy = _prepared(problem, experts, width, folder)
        # From the largest, which converges fastest, down.
        ridges = sorted(ridge_regression.candidates(ridge, problem.reader.count(heldout=True), energy), reverse=True)
        sums = [_solve_rows(problem, experts, rows, blocks, ridges, folder) for rows in slabs]
        tried = {r: float(sum(s[i] for s in sums)) / energy for i, r in enumerate(ridges)} if len(ridges) > 1 else {}
        best = min(sorted(tried), key=lambda r: tried[r]) if tried else ridges[0]
        del blocks
        found = [store.read_state(solver_state.solution_path(folder, rows, best)) for rows in slabs]
    down = torch.cat([down_of(expert) for expert in experts], 1)
    for rows, part in zip(slabs, found, strict=True):
        down[rows] += part["deviation"].to(down.device)
    record: MethodRecord = {
        "objective": {
            "fit": layer_error(problem, experts, down, heldout=False),
            "heldout": layer_error(problem, experts, down, heldout=True),
        },
        "iterations": max(int(part["iterations"]) for part in found),
        "residual": max(float(part["residual"]) for part in found),
    }
    return ridge_regression.Fit(
        down[None], best, {f"{r:g}": tried[r] for r in ridge_regression.GRID} if tried else None
    ), record


def row_slabs(hidden: int, width: int, groups: int, memory: float) -> list[slice]:
    """Return the rows of the output that are solved at once.

    Raises:
        UserError: if the memory is too small for one row.
    """
    fixed, each = 8 * groups * width * (width + 2), 8 * groups * width * VECTORS
    most = min(hidden, int((memory * 1e9 - fixed) // each))
    if most < 1:
        raise UserError(
            f"`memory: {memory:g}` is too little for a joint solve of {groups} experts of {width} neurons: one output "
            f"at a time takes {(fixed + each) / 1e9:.2g} GB. Raise `memory`, or keep fewer experts or neurons"
        )
    parts = -(-hidden // most)
    ends = [hidden * i // parts for i in range(parts + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def _solve_rows(
    problem: Problem, experts: Sequence[Experts], rows: slice, blocks: Blocks, ridges: Sequence[float], folder: Path
) -> Tensor:
    """Solve some rows for every lambda, each from the one before; return their squared errors on held-out tokens."""
    w0 = torch.cat([down_of(expert)[rows] for expert in experts], 1)
    scale = ridge_regression.typical_energy(blocks.diagonal)
    shape, device = list(w0.shape), w0.device
    shapes = {name: shape for name in ("deviation", "residual", "direction")}
    shapes |= {"scale": [2], "objective": [1], "iterations": [1], "tried": [len(ridges)], "at": [1]}
    if saved := solver_state.saved_rows(folder, rows, shapes, ridges):
        tried, at = saved.pop("tried"), saved.pop("at")
        descent = Descent(**{name: part.to(device) if part.ndim > 1 else part for name, part in saved.items()})
    else:
        b, squared, energy = gradient(problem, experts, w0, rows)
        descent = Descent.begin(b, (energy * float(blocks.diagonal.sum())) ** 0.5)
        descent.restart(b, squared, blocks, ridges[0] * scale)
        tried, at = torch.zeros(len(ridges), dtype=torch.float64), torch.zeros(1, dtype=torch.int64)

    def save() -> None:
        saved = {**vars(descent), "tried": tried, "at": at}
        store.write_state(solver_state.state_path(folder, rows), {name: part.cpu() for name, part in saved.items()})

    for place in range(int(at), len(ridges)):
        ridge, penalty = ridges[place], ridges[place] * scale
        _descend(problem, experts, rows, w0, descent, blocks, ridge, penalty, save)
        if len(ridges) > 1:
            tried[place] = _squared(problem, experts, w0 + descent.deviation, rows)
        solution = {"deviation": descent.deviation.cpu(), "iterations": descent.iterations}
        solution["residual"] = torch.tensor([descent.relative], dtype=torch.float64)
        store.write_state(solver_state.solution_path(folder, rows, ridge), solution)
        at += 1
        if place + 1 < len(ridges):
            squared = float(descent.objective) - penalty * float(descent.deviation.square().sum())
            unpenalized = descent.residual.add_(descent.deviation, alpha=penalty)
            descent.restart(unpenalized, squared, blocks, ridges[place + 1] * scale)
            descent.iterations.zero_()
        save()
    return tried


def _descend(
    problem: Problem,
    experts: Sequence[Experts],
    rows: slice,
    w0: Tensor,
    descent: Descent,
    blocks: Blocks,
    ridge: float,
    penalty: float,
    save: Callable[[], None],
) -> None:
    """Run conjugate gradients until the recomputed residual is small."""
    progress, last = Progress(f"iterations at ridge {ridge:g}", None), [time.monotonic()]

    def each() -> None:
        progress.step()
        if time.monotonic() - last[0] >= SAVE_EVERY:
            save()
            last[0] = time.monotonic()

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for tokens in problem.reader.chunks(heldout=False, device=v.device):
            parts = layer_features(tokens, problem, experts)
            _add(total, parts, layer_output(parts, v, len(tokens.hidden)))
        return total

    while descent.run(product, blocks, penalty, each):
        residual, squared, _ = gradient(problem, experts, w0 + descent.deviation, rows)
        descent.restart(residual, squared, blocks, penalty)
        if descent.small(penalty):
            return
    raise UserError(
        f"the joint solve is at a residual of {descent.relative:.1g} after {conjugate_gradients.ITERATIONS} iterations "
        f"at ridge {ridge:g}; solved is {conjugate_gradients.TOLERANCE:g}. Usually some neurons are nearly "
        "combinations of others and the ridge is too small to part them: give `ridge` a larger number, or raise "
        "`memory` for the direct solve"
    )


def gradient(problem: Problem, experts: Sequence[Experts], w: Tensor, rows: slice) -> tuple[Tensor, float, float]:
    """Return (Y - W P) P^T [h, M P], ||W P - Y||^2 and ||Y||^2 of some rows of the output over the fitted tokens."""
    total, squared, energy = torch.zeros_like(w), 0.0, 0.0
    for tokens in problem.chunks(heldout=False):
        parts, y = layer_features(tokens, problem, experts), layer_target(tokens, problem)[:, rows]
        energy += float(y.square().sum())
        missing = y - layer_output(parts, w, len(y))
        squared += float(missing.square().sum())
        _add(total, parts, missing)
    return total, squared, energy


def _squared(problem: Problem, experts: Sequence[Experts], w: Tensor, rows: slice) -> float:
    """Return ||W P - Y||^2 of some rows over the held-out tokens."""
    squared = 0.0
    for tokens in problem.chunks(heldout=True):
        parts, y = layer_features(tokens, problem, experts), layer_target(tokens, problem)[:, rows]
        squared += float((y - layer_output(parts, w, len(y))).square().sum())
    return squared


def _add(total: Tensor, parts: Sequence[tuple[Tensor, Tensor]], y: Tensor) -> None:
    """Add Y P^T."""
    for (rows, p), own in zip(parts, torch.split(total, [p.shape[1] for _, p in parts], 1), strict=True):
        own += y[rows].T @ p


def _prepared(problem: Problem, experts: Sequence[Experts], width: int, folder: Path) -> tuple[Blocks, float]:
    """Return G's diagonal blocks, and ||Y||^2 over the held-out tokens."""
    m, path, device = len(experts), folder / "blocks.safetensors", problem.experts.down.device
    shapes = {"vectors": [m, width, width], "values": [m, width], "diagonal": [m * width], "energy": [1]}
    if saved := solver_state.read_saved(path, shapes):
        energy = float(saved.pop("energy"))
        return Blocks(**{name: part.to(device) for name, part in saved.items()}), energy
    gram = torch.zeros(m, width, width, dtype=torch.float64, device=device)
    for tokens in problem.chunks(heldout=False):
        for block, (_, p) in zip(gram, layer_features(tokens, problem, experts), strict=True):
            block += p.T @ p
    if not gram.isfinite().all():
        raise UserError(
            "the sums of a solve hold NaN or infinity: captured activations or experts hold values that are NaN, "
            "infinite or too large. Look at the layer's weights, and at `capture.dtype`"
        )
    blocks = Blocks.factor(gram)
    energy = sum(float(layer_target(tokens, problem).square().sum()) for tokens in problem.chunks(heldout=True))
    tensors = {**vars(blocks), "energy": torch.tensor([energy], dtype=torch.float64)}
    store.write_state(path, {name: part.cpu() for name, part in tensors.items()})
    return blocks, energy
