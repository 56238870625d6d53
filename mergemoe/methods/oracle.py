"""The exact output (arXiv 2510.14436, table 5): one expert with all neurons of the group.

    E'(x) = sum_j w_j E_j(x),   w_j = f_j / sum_C f

T1 of `mergemoe` approximates this. A layer has one width, that of its largest group, and the other groups are padded
with neurons of weight 0. The checkpoint is larger than the original, so the method is for small models. A family's norm
after the down-projection stays behind the sum, which is then not exact.
"""

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from mergemoe.merging.neuron_selection import pool
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Group, Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, for every group of the layer, the expert of all its neurons; nothing if no group has several members."""
    if not problem.merged_groups:
        return []
    largest = max(len(group.members) for group in problem.groups)
    width = largest * problem.experts.up.shape[1]
    return [Merged(group, padded(side_by_side(problem, group), width), {}) for group in problem.groups]


def side_by_side(problem: Problem, group: Group) -> Experts:
    """Return the neurons of a group's members, each down-projection column times its member's share of the usage."""
    expert = pool(problem, group)
    shares = group.weights.to(expert.down.device).repeat_interleave(problem.experts.up.shape[1])
    return replace(expert, down=expert.down * shares)


def padded(expert: Experts, width: int) -> Experts:
    """Return one expert (E = 1) of `width` neurons, the new ones of weight 0."""
    more = width - expert.up.shape[1]

    def rows(part: Tensor | None) -> Tensor | None:
        return None if part is None else pad(part, [*[0, 0] * (part.ndim - 2), 0, more])

    up = rows(expert.up)
    assert up is not None
    return replace(
        expert,
        up=up,
        gate=rows(expert.gate),
        down=pad(expert.down, [0, more]),
        up_bias=rows(expert.up_bias),
        gate_bias=rows(expert.gate_bias),
    )
