"""The experts of a layer by GPTQ: gate and up for the tokens, then down for the features that they make of them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import features
from mergemoe.moe.experts import Experts
from mergemoe.moe.layer_sizes import GRAM_BYTES
from mergemoe.moe.problem import Problem
from mergemoe.quantization.gptq import Corrected, gptq
from mergemoe.quantization.grids import Grid

Inputs = Callable[[Tensor, int], Tensor]  # of hidden states [n, H] and an expert: what its matrix multiplies


class Calibrated(NamedTuple):
    """Quantized experts, in float32; the same before they were rounded (gptq.Corrected), and the grids of each role."""

    experts: Experts
    before: Experts
    grids: dict[str, Grid]  # [M, R, C / group]


def calibrated_experts(
    problem: Problem, compact: Experts, bits: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Calibrated:
    """Return the M experts quantized by GPTQ.

    Args:
        problem: the layer with its calibration tokens.
        compact: its experts, as they were solved or refined.
        bits: of each role's matrices [M].
        options: group and damping.
    """
    parts = {role: part for role in ("gate", "up") if (part := compact.roles().get(role)) is not None}
    of_rows = torch.cat([bits[role][:, None].expand(-1, part.shape[1]) for role, part in parts.items()], 1)
    both = _quantized(problem, torch.cat([*parts.values()], 1), of_rows, lambda x, _: x, options)
    rows = {"up": slice(-compact.up.shape[1], None)}
    if compact.gate is not None:
        rows["gate"] = slice(None, compact.up.shape[1])
    made = {role: both.rows(which) for role, which in rows.items()}
    first = replace(compact, **{role: found.weights for role, found in made.items()})
    of_rows = bits["down"][:, None].expand(-1, compact.down.shape[1])
    made["down"] = _quantized(
        problem, compact.down, of_rows, lambda x, expert: features(x, first, expert, problem.act), options
    )
    return Calibrated(
        replace(first, down=made["down"].weights),
        replace(compact, **{role: found.before for role, found in made.items()}),
        {role: found.grid for role, found in made.items()},
    )


def _quantized(
    problem: Problem, matrices: Tensor, bits: Tensor, inputs: Inputs, options: Mapping[str, Any]
) -> Corrected:
    """Return matrices [M, R, C] by GPTQ in float32; as many at once as their Gram matrices have room; bits [M, R]."""
    how = {name: options[name] for name in ("group", "damping")}
    weights, before, size = torch.empty_like(matrices), torch.empty_like(matrices), matrices.shape[-1]
    grids, at_once = list[Grid](), max(1, GRAM_BYTES // (8 * size**2))
    for start in range(0, len(matrices), at_once):
        which = range(start, min(start + at_once, len(matrices)))
        for expert, gram in zip(which, _grams(problem, which, size, inputs), strict=True):
            weights[expert], before[expert], grid = gptq(matrices[expert], gram, bits[expert], **how)
            grids.append(grid)
    return Corrected(weights, before, Grid(*(torch.stack(parts).float() for parts in zip(*grids, strict=True))))


def _grams(problem: Problem, which: range, size: int, inputs: Inputs) -> Tensor:
    """Return sum_x t_i(x)^2 v v^T [b, size, size] in float64 over the fitted tokens, v the input of experts `which`."""
    grams = torch.zeros(len(which), size, size, dtype=torch.float64, device=problem.experts.up.device)
    for tokens in problem.chunks(heldout=False):
        shares = problem.shares(tokens)
        for place, expert in enumerate(which):
            rows = torch.where(shares[:, expert] != 0)[0]
            v = inputs(tokens.hidden[rows].float(), expert).double() * shares[rows, expert, None]
            grams[place] += v.mT @ v
    return grams
