"""Quantize the experts of one solved layer: gate, up and down, each row in groups of its own scale."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import Activation, features
from mergemoe.moe.experts import Experts
from mergemoe.moe.finite import check_finite
from mergemoe.moe.layer_sizes import GRAM_BYTES
from mergemoe.moe.problem import Problem
from mergemoe.moe.quantize_record import QuantizeRecord
from mergemoe.moe.records import ByPart
from mergemoe.moe.router_rule import Router
from mergemoe.moe.solved import compact_experts, output_error, solved_problem
from mergemoe.moe.tokens import Activations
from mergemoe.quantization.gptq import gptq
from mergemoe.quantization.grids import rounded_blocks
from mergemoe.quantization.options import misfit, weight_bits

ROLES = ("gate", "up", "down")  # what is quantized: biases stay


def quantize(
    experts: Experts,
    solved: Mapping[str, Tensor],
    reader: Activations,
    act: Activation,
    *,
    router: Router | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], QuantizeRecord]:
    """Quantize all M experts of a solved layer, those too that were not merged.

    Args:
        experts: all N original experts.
        solved: the layer's tensors, as merging.solve.solve or reconstruction.refine.refine returns them.
        reader: the layer's calibration activations.
        act: the activation.
        router: the layer's original router, if `solved` has one of its own.
        options: `by` and all options of it (options.KINDS).

    Returns:
        tensors: in the form of `solved`, with every group, in float32: the values that the format has; and `bytes`,
        which the layer's experts take in it.
        record: errors before and after, and the bytes of the format.

    Raises:
        UserError: if a block does not divide the rows.
    """
    problem = solved_problem(experts, solved, reader, act, router)
    compact = compact_experts(problem.experts, solved)
    lengths = {f"rows of {role}": part.shape[-1] for role, part in compact.roles().items() if role in ROLES}
    if why := misfit(options, lengths):
        raise UserError(why)
    if options["by"] == "round":
        made = {
            role: rounded_blocks(part, options["format"]) for role, part in compact.roles().items() if role in ROLES
        }
        quantized = Experts(**{**compact.roles(), **made}, norm=compact.norm)
    else:
        quantized = _corrected(problem, compact, options)
    for role, part in quantized.roles().items():  # a scale of 16 bits may overflow, also in an expert without tokens
        check_finite(f"quantized {role} matrices", part)
    tensors = {
        **{name: part for name, part in solved.items() if name in ("expert_map", "router", "router_bias")},
        **{role: part.float().cpu() for role, part in quantized.roles().items()},
        "groups": torch.arange(len(compact)),
        "bytes": torch.tensor(_stored(compact, weight_bits(options), experts.up.element_size())),
    }

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
        "bits": weight_bits(options),
        "bytes": int(tensors["bytes"]),
    }
    return tensors, record


def _stored(experts: Experts, bits: float, size: int) -> int:
    """Return the bytes of experts in a format; biases take `size` bytes a number."""
    weights, biases = (
        sum(part.numel() for role, part in experts.roles().items() if (role in ROLES) == quantized)
        for quantized in (True, False)
    )
    return int(weights * bits / 8) + biases * size


def _corrected(problem: Problem, compact: Experts, options: Mapping[str, Any]) -> Experts:
    """Return the experts by GPTQ: gate and up for the tokens, then down for the features that they make of them."""
    how = {name: options[name] for name in ("bits", "group", "damping")}

    def solve(matrices: Tensor, inputs: Callable[[Tensor, int], Tensor]) -> Tensor:
        made, size = torch.empty_like(matrices), matrices.shape[-1]
        at_once = max(1, GRAM_BYTES // (8 * size**2))
        for start in range(0, len(matrices), at_once):
            which = range(start, min(start + at_once, len(matrices)))
            for expert, gram in zip(which, _grams(problem, which, size, inputs), strict=True):
                made[expert] = gptq(matrices[expert], gram, **how)
        return made

    parts = [part for part in (compact.gate, compact.up) if part is not None]
    both, width = solve(torch.cat(parts, 1), lambda x, _: x), compact.up.shape[1]
    first = replace(compact, gate=None if compact.gate is None else both[:, :width], up=both[:, -width:])
    return replace(first, down=solve(compact.down, lambda x, expert: features(x, first, expert, problem.act)))


def _grams(problem: Problem, which: range, size: int, inputs: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return sum_x t_i(x)^2 v v^T [b, size, size] in float64 over the fitted tokens, v the input of experts `which`."""
    grams = torch.zeros(len(which), size, size, dtype=torch.float64, device=problem.experts.up.device)
    for tokens in problem.chunks(heldout=False):
        shares = problem.shares(tokens)
        for place, expert in enumerate(which):
            rows = torch.where(shares[:, expert] != 0)[0]
            v = inputs(tokens.hidden[rows].float(), expert).double() * shares[rows, expert, None]
            grams[place] += v.mT @ v
    return grams
