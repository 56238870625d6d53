"""What the map of a layer's experts shows: how much each one is used and matters, and who became one with whom.

templates/experts.js draws it: a picture for each of a hundred layers and groupings would make a page heavy, its
numbers do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mergemoe.report.plot_style import rounded

Json = dict[str, Any]


def profiled(profile: Mapping[str, Any]) -> Json:
    """Return each expert's share of all choices, and its saliency."""
    total = sum(profile["usage"]) or 1
    return {
        "usage": rounded(count / total for count in profile["usage"]),
        "saliency": rounded(profile["saliency"]),
    }


def grouped(grouping: Mapping[str, Any], usage: Sequence[float]) -> Json:
    """Return the members of each group, the most used first in it and among groups, and the pruned experts."""
    groups = sorted(grouping["groups"], key=lambda group: (-group["share"], group["centre"]))
    return {
        "groups": [sorted(group["members"], key=lambda expert: (-usage[expert], expert)) for group in groups],
        "shares": rounded(group["share"] for group in groups),
        "pruned": list(grouping["pruned"]),
    }
