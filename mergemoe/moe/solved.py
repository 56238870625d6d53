"""A solved layer: its merged experts put in place, and the error of its routed output."""

from collections.abc import Callable, Mapping

from torch import Tensor

from mergemoe.moe.expert_forward import Activation, routed_output, shared_output
from mergemoe.moe.experts import Experts
from mergemoe.moe.tokens import Activations, Tokens
from mergemoe.progress import track


def compact_experts(experts: Experts, tensors: Mapping[str, Tensor]) -> Experts:
    """Return the M experts of a solved layer: merged ones from `tensors`, the others as they were."""
    expert_map = tensors["expert_map"].tolist()
    first_member = [expert_map.index(group) for group in range(max(expert_map) + 1)]

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
    """
    device = experts.up.device
    squared = energy = 0.0
    for tokens in track(reader.chunks(heldout=heldout, device=device), "chunks for the error", reader.chunk_count()):
        y = routed_output(tokens.hidden, tokens.index, tokens.weight, experts, act).double()
        approximate = shared_output(tokens.hidden, shares(tokens), compact, act).double()
        squared += float((approximate - y).square().sum())
        energy += float(y.square().sum())
    return squared / energy if energy else None
