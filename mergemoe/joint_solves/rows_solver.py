"""Conjugate gradients for some rows of the joint solve, one ridge after the other, saved on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergemoe.artifacts import store
from mergemoe.errors import UserError
from mergemoe.joint_solves import recursion, solver_state
from mergemoe.joint_solves.recursion import Blocks, Descent
from mergemoe.joint_solves.routed_features import RoutedFeatures, Weighted
from mergemoe.joint_solves.rows import Rows
from mergemoe.merging import ridge_regression
from mergemoe.merging.layer_output import layer_output
from mergemoe.progress import Progress

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class RowsSolver:
    """What all rows share: passes over the tokens, the prior W0 [H, M P], the diagonal blocks of G, and a folder."""

    passes: RoutedFeatures
    prior: Tensor
    blocks: Blocks
    folder: Path

    def solve(self, rows: Rows, ridges: Sequence[float], stop: bool = False) -> Tensor:
        """Solve some rows for each ridge, each from the one before; return ||W P - Y||^2 over held-out tokens.

        With one ridge there is nothing to choose, and the squared error is 0. Mixtures are solved roughly; other rows'
        solutions lie in the folder. With `stop` the rest is not tried when the error rises; it counts as infinite.
        """
        w0 = rows.of(self.prior.T).T.contiguous()
        scale = ridge_regression.typical_energy(self.blocks.diagonal)
        shape, device = list(w0.shape), w0.device
        shapes = {name: shape for name in ("deviation", "residual", "direction")}
        shapes |= {"scale": [2], "objective": [1], "iterations": [1], "tried": [len(ridges)], "at": [1], "exact": [1]}
        if saved := solver_state.saved_rows(self.folder, rows, shapes, ridges):
            tried, at, exact = saved.pop("tried"), saved.pop("at"), saved.pop("exact")
            state = Descent(**{name: part.to(device) if part.ndim > 1 else part for name, part in saved.items()})
        else:
            b, squared, energy = self.gradient(w0, rows)
            state = Descent.begin(b, (energy * float(self.blocks.diagonal.sum())) ** 0.5)
            state.restart(b, squared, self.blocks, ridges[0] * scale)
            tried, (at, exact) = torch.zeros(len(ridges), dtype=torch.float64), torch.zeros(2, 1, dtype=torch.int64)

        def save() -> None:
            saved = {**vars(state), "tried": tried, "at": at, "exact": exact}
            path = solver_state.state_path(self.folder, rows)
            store.write_state(path, {name: part.cpu() for name, part in saved.items()})

        while (place := int(at)) < len(ridges):
            penalty = ridges[place] * scale
            self._descend(rows, w0, state, ridges[place], penalty, exact, save)
            if len(ridges) > 1:
                tried[place] = self._squared(w0 + state.deviation, rows)
            if rows.mixtures is None:
                solution = {"deviation": state.deviation.cpu(), "iterations": state.iterations}
                solution["residual"] = torch.tensor([state.relative], dtype=torch.float64)
                store.write_state(solver_state.solution_path(self.folder, rows, ridges[place]), solution)
            at += 1
            if stop and tried[place] > ridge_regression.RISEN * tried[: place + 1].min():
                tried[place + 1 :] = torch.inf
                at.fill_(len(ridges))
            if int(at) < len(ridges):
                squared = float(state.objective) - penalty * float(state.deviation.square().sum())
                unpenalized = state.residual.add_(state.deviation, alpha=penalty)
                state.restart(unpenalized, squared, self.blocks, ridges[place + 1] * scale)
                state.iterations.zero_()
                exact.zero_()
            save()
        return tried

    def gradient(self, w: Tensor, rows: Rows) -> tuple[Tensor, float, float]:
        """Return (Y - W P) P^T [h, M P], ||W P - Y||^2 and ||Y||^2 of some rows over the fitted tokens."""
        total, squared, energy = torch.zeros_like(w), 0.0, 0.0
        for parts, y in self.passes.with_target(heldout=False):
            own = rows.of(y)
            energy += float(own.square().sum())
            missing = own - layer_output(parts, w, len(own))
            squared += float(missing.square().sum())
            add_cross(total, parts, missing)
        return total, squared, energy

    def _descend(
        self,
        rows: Rows,
        w0: Tensor,
        state: Descent,
        ridge: float,
        penalty: float,
        exact: Tensor,
        save: Callable[[], None],
    ) -> None:
        """Run conjugate gradients until the residual, recomputed in float64, is small.

        Products are in float32, added up in float64, until it is recomputed once, then `exact` [1] is 1 and they are in
        float64, too.
        """
        progress, last = Progress(f"iterations at ridge {ridge:g}", None), [time.monotonic()]
        tolerance = recursion.TOLERANCE if rows.mixtures is None else recursion.ROUGH

        def each() -> None:
            progress.step()
            if time.monotonic() - last[0] >= SAVE_EVERY:
                save()
                last[0] = time.monotonic()

        def product(v: Tensor) -> Tensor:
            total, dtype = torch.zeros_like(v), torch.float64 if exact else torch.float32
            for parts, count in self.passes.features(heldout=False, dtype=dtype):
                add_cross(total, parts, layer_output(parts, v.to(dtype), count))
            return total

        while state.run(product, self.blocks, penalty, tolerance, each):
            residual, squared, _ = self.gradient(w0 + state.deviation, rows)
            state.restart(residual, squared, self.blocks, penalty)
            if state.small(penalty, tolerance):
                return
            exact.fill_(1)
        raise UserError(
            f"the joint solve is at a residual of {state.relative:.1g} after {recursion.ITERATIONS} iterations at "
            f"ridge {ridge:g}; solved is {tolerance:g}. Usually some neurons are nearly combinations of others and the "
            "ridge is too small to part them: give `ridge` a larger number, or raise `memory` for the direct solve"
        )

    def _squared(self, w: Tensor, rows: Rows) -> float:
        """Return ||W P - Y||^2 of some rows over the held-out tokens."""
        parts = self.passes.with_target(heldout=True)
        return sum(float((rows.of(y) - layer_output(p, w, len(y))).square().sum()) for p, y in parts)


def add_cross(total: Tensor, parts: Weighted, y: Tensor) -> None:
    """Add Y P^T to `total` [h, M P]."""
    for (rows, p), own in zip(parts, torch.split(total, [p.shape[1] for _, p in parts], 1), strict=True):
        own += y[rows].T @ p
