"""The input and the output of a method: a layer with its groups and tokens, and one merged expert per group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.records import MethodRecord
from mergemoe.moe.router_rule import Router
from mergemoe.moe.tokens import Activations, Tokens, dense_weights
from mergemoe.progress import track


@dataclass(frozen=True)
class Group:
    """Experts that become one; `weights` are their shares of the group's usage and sum to 1 (Theorem 1)."""

    number: int
    members: list[int]
    weights: Tensor

    def mean(self, matrices: Tensor) -> Tensor:
        """Return the usage-weighted mean [1, ...] of the members' matrices or biases [|C|, ...], in float64."""
        return torch.einsum("c,c...->...", self.weights.to(matrices.device), matrices.double())[None]

    @property
    def dominant(self) -> int:
        """Return the place among the members of the most used one; ties go to the lower index."""
        return int(self.weights.argmax())


@dataclass(frozen=True)
class Problem:
    """One layer: its experts in float32, all of its groups, and the calibration tokens.

    changed: the router of M rows that takes the place of the layer's own; None if the routing is preserved.
    scratch: a folder for this solve alone, with which a killed solve continues; None if nothing is saved.
    """

    experts: Experts
    groups: list[Group]
    reader: Activations
    act: Activation
    changed: Router | None = None
    scratch: Path | None = None

    @property
    def merged_groups(self) -> list[Group]:
        """Return the groups of more than one expert; a method that leaves single experts alone solves only these."""
        return [group for group in self.groups if len(group.members) > 1]

    def chunks(self, heldout: bool) -> Iterable[Tokens]:
        """Return the fitted (or held-out) tokens in chunks, on the device of the experts; it shows progress."""
        chunks = self.reader.chunks(heldout=heldout, device=self.experts.down.device)
        return track(chunks, f"chunks of {'held-out' if heldout else 'fitted'} tokens", self.reader.chunk_count())

    def routing_weights(self, tokens: Tokens) -> Tensor:
        """Return g_j(x) [n, N]: the weight with which the layer uses each expert on each token."""
        return dense_weights(tokens.index, tokens.weight, len(self.experts))

    def shares(self, tokens: Tokens) -> Tensor:
        """Return t_i(x) [n, M]: the weight with which each group works on each token."""
        if self.changed:
            return self.changed.weights(tokens.hidden)
        group_of = torch.zeros(len(self.experts), dtype=torch.int64, device=tokens.index.device)
        for place, group in enumerate(self.groups):
            group_of[group.members] = place
        return dense_weights(group_of[tokens.index], tokens.weight, len(self.groups))

    def with_router(self, router: Router) -> "Problem":
        """Return the same layer behind another router."""
        return replace(self, changed=router)


@dataclass(frozen=True)
class Merged:
    """One merged group: its expert (E = 1), and the figures of its solve."""

    group: Group
    expert: Experts
    record: MethodRecord


def groups_of(expert_map: Sequence[int], usage: Sequence[int]) -> list[Group]:
    """Return the groups in the order of their numbers; members that no token chose share equally."""
    groups: list[Group] = []
    for number in range(max(expert_map) + 1):
        members = [expert for expert, group in enumerate(expert_map) if group == number]
        used = torch.tensor([usage[expert] for expert in members], dtype=torch.float64)
        weights = used / used.sum() if used.sum() else torch.full_like(used, 1 / len(members))
        groups.append(Group(number, members, weights))
    return groups
