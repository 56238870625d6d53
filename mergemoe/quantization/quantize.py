"""Quantize the experts of one solved layer: gate, up and down, each row in groups of its own scale."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.finite import check_finite
from mergemoe.moe.problem import Problem
from mergemoe.moe.quantize_record import QuantizeRecord
from mergemoe.moe.records import ByPart
from mergemoe.moe.router_rule import Router
from mergemoe.moe.solved import compact_experts, output_error, solved_problem
from mergemoe.moe.tokens import Activations
from mergemoe.quantization.bit_budget import spent_bits
from mergemoe.quantization.calibrated import calibrated_experts
from mergemoe.quantization.descended import descended_experts
from mergemoe.quantization.grids import Grid, rounded_blocks
from mergemoe.quantization.options import misfit, weight_bits
from mergemoe.reconstruction.requirements import too_few

ROLES = ("gate", "up", "down")  # what is quantized: biases stay


def quantize(
    experts: Experts,
    solved: Mapping[str, Tensor],
    reader: Activations,
    act: Activation,
    *,
    router: Router | None = None,
    scratch: Path | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], QuantizeRecord]:
    """Quantize all M experts of a solved layer, those too that were not merged.

    Args:
        experts: all N original experts.
        solved: the layer's tensors, as merging.solve.solve or reconstruction.refine.refine returns them.
        reader: the layer's calibration activations.
        act: the activation.
        router: the layer's original router, if `solved` has one of its own.
        scratch: a folder that belongs to exactly this quantization; a killed descent continues from it.
        options: `by` and all options of it (options.KINDS).

    Returns:
        tensors: in the form of `solved`, with every group, in float32: the values that the format has; `bytes`, which
        the layer's experts take in it; and by gptq and descent the grids [M, R, C / group] of each role: `<role>_scale`
        in float16 and `<role>_zero` in uint8; and their bits [M], `<role>_bits` in uint8.
        record: errors before and after, and the bytes of the format.

    Raises:
        UserError: if a block does not divide the rows, or a descent has too few held-out sequences.
    """
    problem = solved_problem(experts, solved, reader, act, router)
    compact, grids = compact_experts(problem.experts, solved), dict[str, Tensor]()
    lengths = {f"rows of {role}": part.shape[-1] for role, part in compact.roles().items() if role in ROLES}
    for why in (misfit(options, lengths), too_few(reader.heldout_sequences()) if options["by"] == "descent" else None):
        if why:
            raise UserError(why)
    mean_bits = weight_bits(options)
    if options["by"] == "round":
        made = {
            role: rounded_blocks(part, options["format"]) for role, part in compact.roles().items() if role in ROLES
        }
        quantized = Experts(**{**compact.roles(), **made}, norm=compact.norm)
    else:
        roles = [role for role in compact.roles() if role in ROLES]
        bits = _bits(problem, compact, roles, options)
        calibrated = calibrated_experts(problem, compact, bits, options)
        quantized = calibrated.experts
        _check_finite(quantized)
        grids = _grid_tensors(calibrated.grids) | {f"{role}_bits": each.to(torch.uint8) for role, each in bits.items()}
        mean_bits = weight_bits({**options, "bits": float(torch.cat([*bits.values()]).double().mean())})
        if options["by"] == "descent":
            start = _tensors(solved, calibrated.before)
            quantized = descended_experts(problem, start, calibrated.grids, scratch, options) or quantized
    _check_finite(quantized)
    tensors = {**_tensors(solved, quantized), **grids}
    tensors["bytes"] = torch.tensor(_stored(compact, mean_bits, experts.up.element_size()))

    def errors(which: Experts) -> ByPart:
        fit, heldout = (
            output_error(problem.experts, which, problem.shares, reader, act, heldout=part) for part in (False, True)
        )
        return {"fit": fit, "heldout": heldout}

    record: QuantizeRecord = {
        "experts": len(experts),
        "kept": len(compact),
        "width": compact.up.shape[1],
        "tokens": {"fit": reader.count(), "heldout": reader.count(heldout=True)},
        "start_error": errors(compact),
        "output_error": errors(quantized),
        "bits": mean_bits,
        "bytes": int(tensors["bytes"]),
    }
    return tensors, record


def _bits(problem: Problem, compact: Experts, roles: Sequence[str], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the bits [M] of each role's matrices."""
    if options["bits"] == int(options["bits"]):
        return dict.fromkeys(roles, torch.full((len(compact),), int(options["bits"])))
    return spent_bits(problem, compact, roles, options["bits"], options["group"])


def _check_finite(quantized: Experts) -> None:
    for role, part in quantized.roles().items():  # a scale of 16 bits may overflow, also in an expert without tokens
        check_finite(f"quantized {role} matrices", part)


def _tensors(solved: Mapping[str, Tensor], experts: Experts) -> dict[str, Tensor]:
    """Return the tensors of the solved layer with these M experts."""
    return {
        **{name: part for name, part in solved.items() if name in ("expert_map", "router", "router_bias")},
        **{role: part.float().cpu() for role, part in experts.roles().items()},
        "groups": torch.arange(len(experts)),
    }


def _grid_tensors(grids: Mapping[str, Grid]) -> dict[str, Tensor]:
    scales = {f"{role}_scale": grid.scale.half().cpu() for role, grid in grids.items()}  # exact: fitted in 16 bits
    return {**scales, **{f"{role}_zero": grid.zero.to(torch.uint8).cpu() for role, grid in grids.items()}}


def _stored(experts: Experts, bits: float, size: int) -> int:
    """Return the bytes of experts in a format; biases take `size` bytes a number."""
    weights, biases = (
        sum(part.numel() for role, part in experts.roles().items() if (role in ROLES) == quantized)
        for quantized in (True, False)
    )
    return int(weights * bits / 8) + biases * size
