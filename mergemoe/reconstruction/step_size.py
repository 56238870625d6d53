"""The size of a step: its unit for each role of the weights, and its share of the rate over the steps."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

WARM_UP = 20  # steps
LAST = 1e-3  # of the rate, after the last step of a cosine
FIRST = 100  # steps of the first cosine, if the number of steps is not given; each further one is twice as long


def unit(matrices: Tensor) -> float:
    """Return the step of a rate of 1: RMS / sqrt(inputs), for the matrices [M, outputs, inputs] of one role.

    A step of Adam changes each weight by about the same amount. If all changes of a row push in the same direction, a
    rate of 1 changes what the row typically computes by its own size, at any width and scale of the weights. The best
    rate was found to grow with the cube root of the start's error, too (docs/log.md).
    """
    return float(matrices.square().mean().sqrt()) / math.sqrt(matrices.shape[-1])


def role_groups(weights: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the weights as groups for Adam, one per role; a bias takes the step of its matrix."""
    roles: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        roles.setdefault(name.partition(".")[0], []).append(weight)
    units = {role: unit(torch.cat(parts).detach()) for role, parts in roles.items() if not role.endswith("_bias")}
    return [{"params": parts, "unit": units[role.removesuffix("_bias")]} for role, parts in roles.items()]


def cosine(step: int, steps: int | Literal["auto"]) -> tuple[int, int]:
    """Return the first step of the cosine that a step belongs to, and the number of its steps.

    There is one cosine of `steps` steps; with `auto` there is one after the other (Loshchilov and Hutter, 2017).
    """
    if steps != "auto":
        return (0 if step < steps else steps), steps
    first, length = 0, FIRST
    while step >= first + length:
        first, length = first + length, 2 * length
    return first, length


def pace(step: int, steps: int | Literal["auto"]) -> float:
    """Return the share of the rate at a step: it rises linearly at the very beginning, and falls along each cosine."""
    first, length = cosine(step, steps)
    return min(1.0, (step + 1) / WARM_UP) * (0.5 * (1 + math.cos(math.pi * (step - first) / length)) + LAST)
