"""Data of the chart of a layer's experts: usage and saliency of each one, and the groups.

templates/experts.js draws it, because a figure for each of a hundred layers and groupings would make the page heavy.
"""

from collections.abc import Sequence
from typing import Any

from mergemoe.moe.records import Grouping, Profile
from mergemoe.report.plot_style import rounded

Json = dict[str, Any]


def profiled(profile: Profile) -> Json:
    """Return each expert's share of all choices, and its saliency."""
    total = sum(profile["usage"]) or 1
    return {
        "usage": rounded(count / total for count in profile["usage"]),
        "saliency": rounded(profile["saliency"]),
    }


def grouped(grouping: Grouping, usage: Sequence[float]) -> Json:
    """Return the members of each group, the most used first in it and among groups, and the pruned experts."""
    groups = sorted(grouping["groups"], key=lambda group: (-group["share"], group["centre"]))
    return {
        "groups": [sorted(group["members"], key=lambda expert: (-usage[expert], expert)) for group in groups],
        "shares": rounded(group["share"] for group in groups),
        "pruned": list(grouping["pruned"]),
    }
