"""The error curve of a layer: its error on held-out tokens at several numbers of experts and widths.

Budgets are allocated by this measure. Each size is grouped, and solved group by group (`routed`) with the features that
suit the grouping. That is much cheaper than the joint solve and orders sizes alike (docs/method.md).
"""

from collections.abc import Iterator
from dataclasses import replace

from mergemoe.errors import UserError
from mergemoe.grouping import cluster
from mergemoe.grouping.by_selection import by_selection
from mergemoe.grouping.costs import Costs
from mergemoe.methods import routed
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.records import MeasuredSize, Profile
from mergemoe.moe.solved import compact_experts, output_error, solved_tensors
from mergemoe.progress import track


def error_curve(
    by: str,
    candidates: list[tuple[int, int]],
    problem: Problem,
    profiled: Profile,
    max_size: int | None,
    search: str = "full",
) -> Iterator[MeasuredSize]:
    """Yield {experts, width, error} of each candidate size.

    `error` is ||y' - y||^2 / ||y||^2 of the routed output on the held-out tokens.

    Raises:
        UserError: if no token is held out.
    """
    if not problem.reader.count(heldout=True):
        raise UserError(
            "a budget is spent by the error on held-out calibration tokens, and there are none. Set "
            "`holdout` of `calibrate` above 0"
        )
    features = "selected" if by == "selection" else "usage"
    costs = Costs(problem, max(width for _, width in candidates), search) if by == "selection" else None
    for kept, width in track(candidates, "sizes of the layer"):
        if costs:
            expert_map = by_selection(problem, kept, width, max_size, search, costs)
        else:
            expert_map = cluster.group_experts(by, kept, problem, profiled, width, max_size).expert_map
        grouped = replace(problem, groups=groups_of(expert_map, profiled["usage"]))
        merged = routed.merge(grouped, features, width, ridge="auto")
        compact = compact_experts(problem.experts, solved_tensors(problem.experts, expert_map, merged))
        error = output_error(problem.experts, compact, grouped.shares, problem.reader, problem.act, heldout=True)
        yield {"experts": kept, "width": width, "error": error or 0.0}
