"""A solved layer: its tensors, its M experts, and the error of its routed output."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import Activation, routed_output, shared_output
from mergemoe.moe.experts import Experts
from mergemoe.moe.finite import check_finite, stored
from mergemoe.moe.problem import Merged, Problem, groups_of
from mergemoe.moe.router_rule import Router
from mergemoe.moe.tokens import Activations, Tokens
from mergemoe.moe.typed_torch import ints
from mergemoe.progress import track


def solved_tensors(experts: Experts, expert_map: Sequence[int], merged: Sequence[Merged]) -> dict[str, Tensor]:
    """Return the tensors of a solved layer, on the CPU and in the dtype of the experts.

    `groups` [G'] numbers the groups that a method gave back, each role [G', ., .] has their experts; `expert_map` [N].

    Raises:
        UserError: if a number is beyond the range of the dtype.
    """
    tensors = {
        "groups": torch.tensor([result.group.number for result in merged], dtype=torch.int64),
        "expert_map": torch.tensor(expert_map, dtype=torch.int64),
    }
    for role, like in experts.roles().items():
        made = [result.expert.roles()[role] for result in merged]
        parts = [stored(f"{role} matrices of merged experts", part, experts.up.dtype) for part in made]
        tensors[role] = torch.cat(parts).cpu() if parts else like.new_empty((0, *like.shape[1:])).cpu()
    return tensors


def group_sources(tensors: Mapping[str, Tensor]) -> list[tuple[int | None, int]]:
    """Return, for each group, the row of its merged expert, None if its expert stays; and its first member."""
    expert_map = ints(tensors["expert_map"])
    row_of = {group: row for row, group in enumerate(ints(tensors["groups"]))}
    return [(row_of.get(group), expert_map.index(group)) for group in range(max(expert_map) + 1)]


def solved_problem(
    experts: Experts, solved: Mapping[str, Tensor], reader: Activations, act: Activation, router: Router | None
) -> Problem:
    """Return the layer behind the router that a solve left it, its experts in float32.

    `router` is the original one, with its rule, if `solved` has rows of its own.
    """
    groups = groups_of(ints(solved["expert_map"]), [1] * len(experts))
    changed = None if router is None else Router(router.rule, solved["router"], solved.get("router_bias"))
    return Problem(experts.map(lambda matrices: matrices.float()), groups, reader, act, changed)


def compact_experts(experts: Experts, tensors: Mapping[str, Tensor]) -> Experts:
    """Return the M experts of a solved layer: merged ones from `tensors`, the others as they were."""
    first_member = [expert for _, expert in group_sources(tensors)]

    def fill(role: str) -> Tensor:
        old, new = experts.roles()[role], tensors[role]
        if len(new) == len(first_member):
            return new.to(old)
        whole = old[first_member].clone()
        whole[tensors["groups"]] = new.to(whole)
        return whole

    norm = None if experts.norm is None else experts.norm[first_member]
    return Experts(**{role: fill(role) for role in experts.roles()}, norm=norm)


def output_error(
    experts: Experts,
    compact: Experts,
    shares: Callable[[Tokens], Tensor],
    reader: Activations,
    act: Activation,
    heldout: bool,
) -> float | None:
    """Return ||y' - y||^2 / ||y||^2 of the routed output over the tokens; None without tokens.

    `shares` are the weights [n, M] with which the compact experts work on tokens.

    Raises:
        UserError: if an output is not finite.
    """
    device = experts.up.device
    squared = energy = 0.0
    for tokens in track(reader.chunks(heldout=heldout, device=device), "chunks for the error", reader.chunk_count()):
        y = routed_output(tokens.hidden, tokens.index, tokens.weight, experts, act).double()
        approximate = shared_output(tokens.hidden, shares(tokens), compact, act).double()
        squared += float((approximate - y).square().sum())
        energy += float(y.square().sum())
    check_finite("outputs of the layer", squared, energy)
    return squared / energy if energy else None
