"""Joint least squares (ours): all down-projections of a layer at once, against its whole routed output.

    min over W_1 .. W_M of sum_x || sum_i W_i t_i(x) p_i(x) - y(x) ||^2 + prior

A token's merged experts may make up for one another. M I' columns are unknown, so it wants K times the tokens of
the solve group by group.
"""

from typing import Literal

import torch

from mergemoe import neurons, prior
from mergemoe.budget import kept_width
from mergemoe.problem import Merged, Problem
from mergemoe.routed import down_of, layer_sums, with_down


def merge(
    problem: Problem,
    features: neurons.Features = "usage",
    width: float = 1.0,
    ridge: float | Literal["auto"] = "auto",
) -> list[Merged]:
    """Return, for every group of the layer, the expert with those features and the joint solution."""
    kept = kept_width(width, problem.experts.up.shape[1])
    experts = neurons.features(problem, problem.groups, features, kept)
    fitted, unseen = (layer_sums(problem, experts, heldout=part) for part in (False, True))
    priors = [down_of(expert) for expert in experts]
    solved = prior.fit([fitted], [unseen], [torch.cat(priors, 1)], ridge)
    (down,) = solved.downs
    record = {
        **solved.record(),
        **prior.diagnosis(fitted, kept * len(experts), "the layer"),
        "objective": {"fit": fitted.error(down), "heldout": unseen.error(down)},
    }
    parts = down.split([own.shape[1] for own in priors], dim=1)
    return [
        Merged(group, with_down(expert, part), record)
        for group, expert, part in zip(problem.groups, experts, parts, strict=True)
    ]
