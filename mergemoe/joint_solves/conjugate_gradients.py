"""The joint solve by conjugate gradients, for layers whose sums do not fit into memory.

    V (G + D) = B,   V = W - W0,   B = (Y - W0 P) P^T,   G = P P^T

W [H, M I'] are all down-projections of the layer side by side, W0 their prior, P the routed features, Y the layer's
output, and D the penalty. G [M I', M I'] is never formed: V G = (V P) P^T is one pass over the tokens, each of which
uses few groups. `ridge: auto` is chosen by mixtures of the outputs (merging/output_mixtures.py), from the largest value
down, each started from the solution before it; then all rows are solved with it. Rows that do not fit into the memory
together are solved in several parts. The scratch folder holds the diagonal blocks of G, the state of the current
rows and the solutions found, so a killed solve loses only what it did since the last save.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from mergemoe.artifacts import store
from mergemoe.errors import UserError
from mergemoe.joint_solves import solver_state
from mergemoe.joint_solves.recursion import Blocks
from mergemoe.joint_solves.routed_features import RoutedFeatures
from mergemoe.joint_solves.rows import slabs
from mergemoe.joint_solves.rows_solver import RowsSolver
from mergemoe.merging import output_mixtures, ridge_regression
from mergemoe.merging.least_squares import add_lower, mirror
from mergemoe.moe.experts import Experts, down_of
from mergemoe.moe.problem import Problem
from mergemoe.moe.records import MethodRecord


def fit(
    problem: Problem,
    experts: Sequence[Experts],
    passes: RoutedFeatures,
    ridge: float | Literal["auto"],
    memory: float,
) -> tuple[ridge_regression.Fit, MethodRecord]:
    """Return the joint solution W [H, M P], and for the record its errors, iterations and relative residual.

    Args:
        problem: the layer; with `problem.scratch` a killed solve continues from there.
        experts: one per group, with the prior as down-projection.
        passes: over the layer's routed features.
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
    (hidden, width), groups = down_of(experts[0]).shape, len(experts)
    memory -= passes.bytes / 1e9
    parts = slabs(hidden, width, groups, memory)
    down = torch.cat([down_of(expert) for expert in experts], 1)
    with solver_state.solver_folder(problem.scratch) as folder:
        blocks, energy = _prepared(passes, (groups, width), down.device, folder)
        solver = RowsSolver(passes, down, blocks, folder)
        ridges = ridge_regression.candidates(ridge, problem.reader.count(heldout=True), energy)
        mixtures = output_mixtures.mixtures(hidden, down.device) if len(ridges) > 1 else None
        descending = sorted(ridges, reverse=True)  # the largest converges fastest
        mixed = slabs(hidden, width, groups, memory, mixtures)
        stop = mixtures is not None and len(mixed) == 1  # else each part would stop where its own error rises
        found = [solver.solve(rows, descending, stop) for rows in mixed]
        squared = [float(sum(each)) for each in zip(*found, strict=True)][::-1]
        best = ridges[squared.index(min(squared))]
        for rows in parts if mixtures is not None else []:
            solver.solve(rows, [best])
        del blocks, solver
        solved = [store.read_state(solver_state.solution_path(folder, rows, best)) for rows in parts]
    for rows, part in zip(parts, solved, strict=True):
        down[rows.span] += part["deviation"].to(down.device)
    errors = passes.errors(down)
    record: MethodRecord = {
        "objective": errors,
        "iterations": max(int(part["iterations"]) for part in solved),
        "residual": max(float(part["residual"]) for part in solved),
    }
    if len(ridges) == 1:
        return ridge_regression.Fit(down[None], best, None), record
    assert errors["heldout"] is not None
    tried = dict(zip(ridges, squared, strict=True))
    tried = ridge_regression.errors_of_ridges(tried, best, errors["heldout"], energy)
    return ridge_regression.Fit(down[None], best, tried), record


def _prepared(
    passes: RoutedFeatures, shape: tuple[int, int], device: torch.device, folder: Path
) -> tuple[Blocks, float]:
    """Return the diagonal blocks of G, for (groups, features), and ||Y||^2 over the held-out tokens."""
    (m, width), path = shape, folder / "blocks.safetensors"
    shapes = {"vectors": [m, width, width], "values": [m, width], "diagonal": [m * width], "energy": [1]}
    if saved := solver_state.read_saved(path, shapes):
        energy = float(saved.pop("energy"))
        return Blocks(**{name: part.to(device) for name, part in saved.items()}), energy
    gram = torch.zeros(m, width, width, dtype=torch.float64, device=device)
    for parts, _ in passes.features(heldout=False):
        for block, (_, p) in zip(gram, parts, strict=True):
            add_lower(block, p)
    for block in gram:
        mirror(block)
    if not gram.isfinite().all():
        raise UserError(
            "the sums of a solve hold NaN or infinity: captured activations or experts hold values that are NaN, "
            "infinite or too large. Look at the layer's weights, and at `capture.dtype`"
        )
    blocks = Blocks.factor(gram)
    energy = sum(float(y.square().sum()) for _, y in passes.with_target(heldout=True))
    tensors = {**vars(blocks), "energy": torch.tensor([energy], dtype=torch.float64)}
    store.write_state(path, {name: part.cpu() for name, part in tensors.items()})
    return blocks, energy
