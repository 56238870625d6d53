"""Expected provenance of every artifact, from params.yaml and the code as they are now.

{path: {stage, params, code}}, where the path is the first output of the job.
"""

import json
from typing import Any

from mergemoe.artifacts.stages import STAGES
from stages.support.graph import Graph


class Wildcards(dict[str, str]):
    """The parts of a path, by name and as attributes, as Snakemake gives them to a rule's functions."""

    __getattr__ = dict.__getitem__


def every_claim(graph: Graph) -> dict[str, dict[str, Any]]:
    """Return the claim of every artifact of the runs."""
    found = {}
    for stage, names in graph.jobs:
        wildcards = Wildcards(names)
        found[STAGES[stage].output.format(**wildcards)] = {
            "stage": stage,
            "params": json.loads(graph.parameters(stage)(wildcards)),
            "code": graph.code(stage)(wildcards),
        }
    return found
