"""The descent: Adam on batches of fitted tokens, judged by the error on held-out tokens.

The weights are fitted in float32, or in the dtype of the layer that is given. What is judged, and kept if it is the
best so far, is what would be stored. A killed descent goes on from its last saved state and ends in the same bytes.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mergemoe.artifacts import store
from mergemoe.errors import ArtifactError, UserError
from mergemoe.moe.typed_torch import floats, ints
from mergemoe.progress import Progress
from mergemoe.reconstruction.kept_tokens import Batch, KeptTokens
from mergemoe.reconstruction.objective import Approximation
from mergemoe.reconstruction.step_size import cosine, pace, role_groups

SAVE_EVERY = 60.0  # seconds
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a weight
NUMBERS = {"steps", "start", "eps", "history", "losses"}  # the rest of a saved descent, but its best state
BETAS = (0.9, 0.95)
EPS = 1e-2  # of the gradients' RMS at the first step, for each role
SURE = 2.0  # standard errors by which a state must be better than the start to be kept
TINY = 1e-30  # the least epsilon: 0 / 0 would be NaN
GAIN = 0.1  # the share by which a cosine of `auto` must lower the least held-out error, or it is the last one
MEASURE_EVERY = 25  # steps; more if a measurement would then take more than
MEASURE_SHARE = 0.1  # of the work


@dataclass(frozen=True)
class Settings:
    """How to descend; the names are those of options.LAYER."""

    steps: int | Literal["auto"]
    batch: int
    rate: float
    seed: int
    dtype: str


class Descent:
    """The state of a descent.

    step: steps taken. start [S]: each held-out sequence's part of the error before the first step. best: of the states
    that are surely better than the start, the one with the least held-out error, after `best_step` steps; None if there
    is none. history: (step, mean fitted error of the batches since the last measurement, held-out error) of each
    measurement; the first is of the start, without a fitted error.
    """

    def __init__(self, layer: Approximation, fitted: KeptTokens, heldout: KeptTokens, settings: Settings):
        """Take a layer before its first step, the tokens that it is fitted to, and the tokens that judge."""
        self.layer, self.fitted, self.heldout, self.settings = layer, fitted, heldout, settings
        self.adam: Any = torch.optim.Adam(role_groups(layer.weights), betas=BETAS, fused=True)
        rows = min(settings.batch, fitted.count)
        forward = heldout.count / (3 * rows)  # a measurement in steps, each of which has gradients, too
        self.every = max(MEASURE_EVERY, math.ceil(forward / MEASURE_SHARE))
        self.step = self.best_step = 0
        self.start = torch.empty(0, dtype=torch.float64)
        self.best: dict[str, Tensor] | None = None
        self.history: list[tuple[int, float, float]] = []
        self.losses: list[float] = []

    def run(self, scratch: Path | None) -> None:
        """Descend to the end; go on from the state in the folder `scratch`, and save there once a minute."""
        path = None if scratch is None else scratch / "state.safetensors"
        if path:
            self._resume(path)
        steps, saved = self.settings.steps, time.monotonic()
        progress = Progress("steps of the reconstruction", None if steps == "auto" else steps - self.step)
        for batch in self.fitted.drawn(self.settings.batch, self.settings.seed, self.step):
            at_end = self.step == cosine(self.step, steps)[0]
            if (self.step % self.every == 0 or at_end) and not self._measure():
                return
            if at_end and self._enough():
                return
            self._advance(batch)
            progress.step()
            if path and time.monotonic() - saved >= SAVE_EVERY:
                store.write_state(path, self._state())
                saved = time.monotonic()

    def _enough(self) -> bool:
        """Tell, at the end of a cosine, whether it was the last one."""
        if self.settings.steps != "auto":
            return self.step == self.settings.steps
        if not self.step:
            return False
        before, _ = cosine(self.step - 1, "auto")
        least = [min(error for step, _, error in self.history if step <= end) for end in (before, self.step)]
        return least[1] > (1 - GAIN) * least[0]

    def _advance(self, batch: Batch) -> None:
        start = self.history[0][2]
        rate = self.settings.rate * start ** (1 / 3) * pace(self.step, self.settings.steps)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["unit"]
        self.adam.zero_grad()
        low, device = self.settings.dtype == "bfloat16", batch.target.device.type
        with torch.enable_grad():
            with torch.autocast(device, torch.bfloat16, enabled=low):
                y = self.layer.output(batch.tokens)
            loss = (y - batch.target).square().sum() / (len(y) * self.fitted.energy)
            torch.autograd.backward(loss)
        if not self.step:
            self._ignore_noise()
        self.adam.step()
        self.losses.append(float(loss.detach()))
        self.step += 1

    def _ignore_noise(self) -> None:
        """Let Adam ignore gradients that are rounding noise, such as those of an expert whose output is exact.

        Adam's steps are as large for gradients of 1e-7 as for others, unless its epsilon is larger than these.
        """
        for group in self.adam.param_groups:
            squares = [weight.grad.square().sum() for weight in group["params"] if weight.grad is not None]
            count = sum(weight.numel() for weight in group["params"])
            group["eps"] = max(EPS * math.sqrt(float(sum(squares)) / count), TINY)

    def _measure(self) -> bool:
        """Measure the held-out error, and tell whether to go on: there is an error left, and it is a number."""
        if not self.heldout.energy:
            return False
        tensors = self.layer.solved()
        errors = self.heldout.errors(Approximation(self.layer.problem, tensors).output)
        error = float(errors.sum())
        if not math.isfinite(error):
            if not self.history:
                raise UserError(
                    f"the solved layer's held-out error is {error}: experts or captured activations hold values that "
                    "are too large for float32. A refine cannot fit such a layer; run without `refine`"
                )
            print(
                f"the held-out error is {error} after step {self.step}: the descent ends, and the best state before is "
                "kept. This usually means that `rate` is too high",
                file=sys.stderr,
            )
            return False
        if not self.history:
            self.start = errors
        elif error < self._kept_error() and surely_less(errors, self.start):
            self.best, self.best_step = tensors, self.step
        self.history.append((self.step, sum(self.losses) / max(1, len(self.losses)), error))
        self.losses.clear()
        return error > 0

    def _kept_error(self) -> float:
        return next(error for step, _, error in self.history if step == self.best_step)

    def _state(self) -> dict[str, Tensor]:
        """Return all that a resumed descent needs for the same bytes."""
        moments = {
            f"{name}.{key}": value
            for name, weight in self.layer.weights.items()
            for key, value in self.adam.state[weight].items()
        }
        best = {f"best.{name}": part for name, part in (self.best or {}).items()}
        numbers = {
            "steps": torch.tensor([self.step, self.best_step]),
            "start": self.start,
            "eps": torch.tensor([group["eps"] for group in self.adam.param_groups], dtype=torch.float64),
            "history": torch.tensor(self.history, dtype=torch.float64),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        weights = {name: weight.detach() for name, weight in self.layer.weights.items()}
        return {name: part.cpu() for name, part in {**weights, **moments, **best, **numbers}.items()}

    def _resume(self, path: Path) -> None:
        """Take the saved state, if there is one; a damaged one counts as none."""
        if not path.exists():
            return
        try:
            saved = store.read_state(path)
        except ArtifactError as error:
            print(f"the descent does not go on from there: {error}", file=sys.stderr)
            return
        moments = {f"{name}.{key}" for name in self.layer.weights for key in MOMENTS}
        if not moments | self.layer.weights.keys() | NUMBERS <= saved.keys():
            return
        for name, weight in self.layer.weights.items():
            weight.detach().copy_(saved[name])
            like = {key: saved[f"{name}.{key}"] for key in MOMENTS}
            self.adam.state[weight] = {key: part.to(weight.device) for key, part in like.items()}
        for group, eps in zip(self.adam.param_groups, floats(saved["eps"]), strict=True):
            group["eps"] = eps
        best = {name.removeprefix("best."): part for name, part in saved.items() if name.startswith("best.")}
        (self.step, self.best_step), self.start = ints(saved["steps"]), saved["start"]
        self.best = best or None
        self.history = [(int(row[0]), float(row[1]), float(row[2])) for row in saved["history"]]
        self.losses = floats(saved["losses"])


def surely_less(errors: Tensor, start: Tensor) -> bool:
    """Tell whether the errors [S] of the held-out sequences fell, on average by more than SURE of its standard errors.

    A few sequences can fall by chance while other text gets worse. What falls in one sequence alone tells nothing.
    """
    fall = start - errors
    return len(fall) > 1 and float(fall.mean()) > SURE * float(fall.std()) / math.sqrt(len(fall))
