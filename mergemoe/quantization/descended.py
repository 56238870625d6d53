"""Quantized experts, fitted further to the layer's original output, on the grids that they have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.moe.solved import compact_experts
from mergemoe.quantization.grids import Grid
from mergemoe.quantization.rounded_layer import RoundedLayer
from mergemoe.reconstruction.descent import Descent, Settings
from mergemoe.reconstruction.kept_tokens import KeptTokens


def descended_experts(
    problem: Problem,
    before: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    scratch: Path | None,
    options: Mapping[str, Any],
) -> Experts | None:
    """Return the M experts with the least held-out error that a descent finds; None if none are surely better.

    Args:
        problem: the layer, behind the router that a solve left it.
        before: its tensors, as merging.solve.solve returns them, with all M experts; before they were rounded.
        grids: of each role [M, R, C / group].
        scratch: the folder of this descent.
        options: steps, batch, rate, seed, dtype and targets.
    """
    layer = RoundedLayer(problem, before, grids)
    fitted, heldout = (KeptTokens(problem, part, scratch, options["targets"]) for part in (False, True))
    settings = Settings(**{name: options[name] for name in Settings.__dataclass_fields__})
    descent = Descent(layer, fitted, heldout, settings)
    descent.run(scratch)
    return None if descent.best is None else compact_experts(problem.experts, descent.best)
