"""Plain averages of the members' three matrices: the baseline of both papers."""

from mergemoe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return, per group, the mean of W_G, W_U and W_D."""
    return [
        Merged(problem.experts[group.members].map(lambda m: m.double().mean(0, keepdim=True)), {})
        for group in problem.groups
    ]
