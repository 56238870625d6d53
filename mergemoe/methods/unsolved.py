"""No solve: keep the down-projection that the feature rule produces.

`average`, `hcsmoe`, `msmoe` and `zipit` are presets of this: plain, usage, aligned and zipped features.
"""

from mergemoe.merging import feature_rules
from mergemoe.moe.problem import Merged, Problem


def merge(problem: Problem, features: feature_rules.Features, kept: int) -> list[Merged]:
    """Return, per group, the expert with those features and `kept` neurons."""
    groups = problem.groups if kept < problem.experts.up.shape[1] else problem.merged_groups
    experts = feature_rules.merged_experts(problem, groups, features, kept)
    return [Merged(group, expert, {}) for group, expert in zip(groups, experts, strict=True)]
