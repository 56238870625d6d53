"""REAP (arXiv 2510.13999): the M experts of the highest saliency stay as they are, with their rows of the router.

Saliency is the mean of g_j(x) ||E_j(x)|| over the tokens that chose expert j (profile.py); the grouping `saliency`
keeps the highest.
"""

from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return nothing to replace: what is pruned is only left out."""
    return []
