"""REAP (arXiv 2510.13999): keep the M experts with the highest saliency unchanged, with their rows of the router.

Saliency is the mean of g_j(x) ||E_j(x)|| over the tokens that chose expert j (calibration/profile.py). The grouping
`saliency` chooses the experts.
"""

from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem) -> list[Merged]:
    """Return no merged expert: the grouping has pruned the others already."""
    return []
