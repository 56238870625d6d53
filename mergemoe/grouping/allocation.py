"""Allocation of one budget over all layers: how many experts each layer keeps, and how wide. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from mergemoe.errors import UserError
from mergemoe.moe.records import MeasuredSize

NO_SIZE_IN_COMMON = (
    "`per: model` chooses one number of experts and one width for all layers, and these layers have no size in common: "
    "they differ in experts or width. Set `per: layer` in `cluster`, or a range of `layers`"
)
Floats = npt.NDArray[np.float64]
Measured = Sequence[MeasuredSize]  # the sizes of one layer, as curve.error_curve gives them


def by_usage(usage: Mapping[int, Sequence[float]], total: int, max_size: int | None = None) -> dict[int, int]:
    """Return {layer: M} by one threshold of usage for all layers (M-SMoE, arXiv 2310.01334).

    Usage counts relative to the most used expert of its layer, which is kept, and as many others as `max_size` asks
    for. Ties go to the lower layer, then to the more used expert, so `total` experts are kept exactly.

    Args:
        usage: {layer: [N]}, as profile.profile_layer counts it.
        total: the sum of all M, no less than the layers must keep.
        max_size: experts of a group at most.
    """
    kept = {layer: -(-len(counts) // (max_size or len(counts))) for layer, counts in usage.items()}
    shares = [
        (-used / max(max(counts), 1e-300), layer, rank)
        for layer, counts in usage.items()
        for rank, used in enumerate(sorted(counts, reverse=True))
        if rank >= kept[layer]
    ]
    for _, layer, _ in sorted(shares)[: total - sum(kept.values())]:
        kept[layer] += 1
    return kept


def by_error(curves: Mapping[int, Measured], total: int) -> dict[int, int]:
    """Return {layer: M} with the least sum of the layers' errors of all with that total.

    Errors between two measured sizes are interpolated; no layer keeps fewer experts than its smallest measured size.
    Of equal sums the one with fewer experts in the last layers is taken.

    Args:
        curves: {layer: its measured sizes, N experts among them}.
        total: the sum of all M.
    """
    best: Floats = np.zeros(1)  # best[k]: the least sum of errors of the layers so far with k experts
    choices: list[npt.NDArray[np.int64]] = []
    for measured in curves.values():
        known = sorted((size["experts"], size["error"]) for size in measured)
        first, last = known[0][0], known[-1][0]
        errors: Floats = np.interp(range(first, last + 1), [m for m, _ in known], [error for _, error in known])
        sums = np.full((len(errors), len(best) + last), np.inf)
        for row in range(len(errors)):
            sums[row, first + row : first + row + len(best)] = best + errors[row]
        best = sums.min(0)
        choices.append(first + sums.argmin(0))
    kept: dict[int, int] = {}
    left = total
    for layer, chosen in zip(reversed(list(curves)), reversed(choices), strict=True):
        kept[layer] = int(chosen[left])
        left -= kept[layer]
    return {layer: kept[layer] for layer in curves}


def best_size(curves: Mapping[int, Measured], per: Literal["layer", "model"]) -> dict[int, tuple[int, int]]:
    """Return {layer: (M, I')} of the sizes with the least error: each layer's own, or one for all layers.

    Of equal errors the one with fewer, wider experts is taken.

    Raises:
        UserError: if all layers are to have one size and they have no size in common.
    """

    def size(entry: MeasuredSize) -> tuple[int, int]:
        return entry["experts"], entry["width"]

    if per == "layer":
        return {layer: size(min(m, key=lambda entry: (entry["error"], size(entry)))) for layer, m in curves.items()}
    offered = [{size(entry) for entry in measured} for measured in curves.values()]
    common = offered[0].intersection(*offered[1:])
    if not common:
        raise UserError(NO_SIZE_IN_COMMON)
    errors = {one: sum(e["error"] for m in curves.values() for e in m if size(e) == one) for one in common}
    chosen = min(common, key=lambda one: (errors[one], one))
    return {layer: chosen for layer in curves}  # noqa: C420  # pyright loses the type of fromkeys
