"""The solve of one layer: run a method on its groups, and measure the error of the merged layer."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergemoe.merging.router_folding import folded_router
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.layer_sizes import kept_width
from mergemoe.moe.problem import Merged, Problem, groups_of
from mergemoe.moe.records import GroupRecord, SolveRecord
from mergemoe.moe.router_rule import Router, check_rule, pruned_router
from mergemoe.moe.solved import compact_experts, output_error, solved_tensors
from mergemoe.moe.tokens import Activations
from mergemoe.moe.typed_torch import floats


def solve(
    experts: Experts,
    expert_map: Sequence[int],
    usage: Sequence[int],
    reader: Activations,
    act: Activation,
    *,
    router: Router | None = None,
    routing: str = "preserved",
    method: str,
    scratch: Path | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], SolveRecord]:
    """Merge the groups of one layer.

    Tensors hold merged groups only; every other kept expert is copied unchanged later.

    Args:
        experts: all N experts, in the stored dtype.
        expert_map: [N] the group of each expert; -1 if it is pruned.
        usage: [N] choices of each expert.
        reader: the layer's calibration activations.
        act: the activation.
        router: the layer's, if the routing changes.
        routing: preserved, pruned or folded.
        method: a file of mergemoe/methods.
        scratch: a folder that belongs to exactly this solve; a killed solve continues from it.
        options: the method's options, except `method`, `threads` and `routing`; the method gets the neurons that it
            keeps (`kept`) for `width` and `width_multiple`.

    Returns:
        tensors: per role [G', ., .] in the stored dtype, `groups` [G'] their numbers, `expert_map` [N];
        `router` [M, H] (and `router_bias` [M]) if the routing changes. If the width changes, it is the
        same in every group.
        record: errors, rank and tokens; `output_error` is ||y' - y||^2 / ||y||^2 of the layer's routed output, with
        the weights as stored.
    """
    working = experts.map(lambda matrices: matrices.float())
    merge = importlib.import_module(f"mergemoe.methods.{method}").merge
    problem = Problem(working, groups_of(expert_map, usage), reader, act, scratch=scratch)
    if routing != "preserved":
        assert router is not None
        problem = rerouted(problem, router, routing)
    if "width" in options:
        share, multiple = options.pop("width"), options.pop("width_multiple")
        options["kept"] = kept_width(share, experts.up.shape[1], multiple)
    merged = merge(problem, **options)
    tensors = solved_tensors(experts, expert_map, merged)
    tensors |= {name: part.cpu() for name, part in problem.changed.state().items()} if problem.changed else {}
    compact = compact_experts(working, tensors)
    record: SolveRecord = {
        "method": method,
        "experts": len(experts),
        "kept": len(compact),
        "width": compact.up.shape[1],
        "tokens": {"fit": reader.count(), "heldout": reader.count(heldout=True)},
        "output_error": {
            "fit": output_error(working, compact, problem.shares, reader, act, heldout=False),
            "heldout": output_error(working, compact, problem.shares, reader, act, heldout=True),
        },
        "groups": [_group_record(result) for result in merged],
    }
    return tensors, record


def untouched(experts: Experts, reader: Activations) -> tuple[dict[str, Tensor], SolveRecord]:
    """Return the result of `solve` for a layer that no method works on: no merged group and no error."""
    fit, heldout = reader.count(), reader.count(heldout=True)
    record: SolveRecord = {
        "method": None,
        "experts": len(experts),
        "kept": len(experts),
        "width": experts.up.shape[1],
        "tokens": {"fit": fit, "heldout": heldout},
        "output_error": {"fit": 0.0 if fit else None, "heldout": 0.0 if heldout else None},
        "groups": [],
    }
    return solved_tensors(experts, range(len(experts)), []), record


def _group_record(result: Merged) -> GroupRecord:
    group = result.group
    return {**result.record, "group": group.number, "members": group.members, "weights": floats(group.weights)}


def rerouted(problem: Problem, router: Router, routing: str) -> Problem:
    """Return the layer behind a router of one row per group: the kept expert's row, or one fitted to all members."""
    for tokens in problem.reader.chunks(device=router.rows.device):
        check_rule(router, tokens)
        break
    if routing not in ("pruned", "folded"):
        raise ValueError(f"a router is pruned or folded, not {routing!r}")
    if routing == "pruned":
        kept = torch.tensor([group.members[0] for group in problem.groups], device=router.rows.device)
        return problem.with_router(pruned_router(router, kept))
    chunks = problem.reader.chunks(device=router.rows.device)
    return problem.with_router(folded_router(router, problem.groups, chunks))
