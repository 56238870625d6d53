"""Refine one solved layer: fit the parts of its experts that are named to the layer's original routed output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem
from mergemoe.moe.records import ByPart
from mergemoe.moe.refine_records import RefineRecord
from mergemoe.moe.router_rule import Router
from mergemoe.moe.solved import solved_problem
from mergemoe.moe.tokens import Activations
from mergemoe.reconstruction.descent import Descent, Settings
from mergemoe.reconstruction.kept_tokens import KeptTokens
from mergemoe.reconstruction.objective import Approximation
from mergemoe.reconstruction.requirements import no_part, too_few


def refine(
    experts: Experts,
    solved: Mapping[str, Tensor],
    reader: Activations,
    act: Activation,
    *,
    router: Router | None = None,
    scratch: Path | None = None,
    steps: int | Literal["auto"],
    batch: int,
    rate: float,
    parts: Sequence[str],
    seed: int,
    dtype: str,
    targets: str,
) -> tuple[dict[str, Tensor], RefineRecord]:
    """Fit the experts of one solved layer.

    Args:
        experts: all N original experts, in the stored dtype.
        solved: the layer's tensors, as merging.solve.solve returns them.
        reader: the layer's calibration activations.
        act: the activation.
        router: the layer's original router, if `solved` has one of its own.
        scratch: a folder that belongs to exactly this refine; a killed one continues from it.
        steps: steps of the descent; auto: until the held-out error stops falling.
        batch: tokens of a step.
        rate: Adam's.
        parts: what is fitted: gate, up and down with their biases, router.
        seed: draws the batches.
        dtype: of products: float32, or bfloat16 with sums in float32.
        targets: kept on disk, or recomputed.

    Returns:
        tensors: in the form of `solved`; the same tensors if no step makes the held-out error less.
        record: errors before and after, and the history of the descent.

    Raises:
        UserError: if fewer than two calibration sequences are held out, or there is nothing to fit.
    """
    for why in (
        too_few(reader.heldout_sequences()),
        no_part(parts, experts.roles()),
        None if reader.count() else "no calibration token is left to fit. Lower `holdout`",
    ):
        if why:
            raise UserError(why)
    problem = solved_problem(experts, solved, reader, act, router)
    layer = Approximation(problem, solved, parts)
    if not len(solved["groups"]) and len(layer.experts) == len(experts):
        steps = 0  # every expert is as it was
    fitted, heldout = (KeptTokens(problem, part, scratch, targets) for part in (False, True))
    descent = Descent(layer, fitted, heldout, Settings(steps, batch, rate, seed, dtype))
    descent.run(scratch)
    tensors = dict(solved) if descent.best is None else descent.best
    record: RefineRecord = {
        "experts": len(experts),
        "kept": len(layer.experts),
        "width": layer.experts[0].up.shape[1],
        "tokens": {"fit": fitted.count, "heldout": heldout.count},
        "start_error": _errors(problem, solved, fitted, heldout),
        "output_error": _errors(problem, tensors, fitted, heldout),
        "steps": descent.step,
        "best_step": descent.best_step,
        "history": [
            {"step": step, "fit": fit if step else None, "heldout": error} for step, fit, error in descent.history
        ],
    }
    return tensors, record


def _errors(problem: Problem, solved: Mapping[str, Tensor], fitted: KeptTokens, heldout: KeptTokens) -> ByPart:
    output = Approximation(problem, solved).output
    return {"fit": fitted.error(output), "heldout": heldout.error(output)}
