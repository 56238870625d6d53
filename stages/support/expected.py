"""What the provenance of every artifact must say, by params.yaml and the code as they are now.

{path: {stage, params, code}}, where the path is the first output of the job.
"""

import json
from typing import Any

from mergemoe.workflow.planning import jobs
from stages.support import graph
from stages.support.graph import Graph
from stages.support.tracking import code

OUTPUTS = {  # the first of each stage's, but of those that score
    "convert": graph.CONVERTED,
    "layout": graph.LAYOUT,
    "calibrate": f"{graph.TOKENS}.safetensors",
    "capture": graph.CAPTURE,
    "profile": graph.PROFILE,
    "curve": graph.CURVE,
    "budget": graph.BUDGET,
    "cluster": graph.CLUSTER,
    "solve": f"{graph.SOLVE}.safetensors",
    "assemble": graph.MODEL,
    "reference": graph.REFERENCE,
    "report": graph.REPORTED,
}
HOW = ("dtype", "batch_tokens", "threads")  # of section evaluate: how the models run


class Wildcards(dict[str, str]):
    """The parts of a path, by name and as attributes, as Snakemake gives them to a rule's functions."""

    __getattr__ = dict.__getitem__


def claims(g: Graph) -> dict[str, dict[str, Any]]:
    """Return the claim of every artifact of the runs."""
    found = {}
    for stage, names in jobs.every(g.params):
        wildcards = Wildcards(names)
        made = g.solve_code(wildcards) if stage == "solve" else code(f"stages.{stage}")
        claim = {"stage": stage, "params": _params(g, stage, wildcards), "code": made}
        found[OUTPUTS.get(stage, graph.SCORE).format(**wildcards)] = claim
    return found


def _params(g: Graph, stage: str, wildcards: Wildcards) -> dict[str, Any]:
    of = {
        "convert": g.choice("model"),
        "layout": g.plain_choice,
        "calibrate": g.choice("calibrate"),
        "capture": lambda _: g.section("capture"),
        "profile": lambda _: g.section("profile"),
        "curve": g.curve_choice,
        "budget": g.budget_choice,
        "cluster": g.cluster_choice,
        "solve": g.choice("solve"),
        "assemble": g.run_choice,
        "reference": lambda _: g.evaluate("heldout", *HOW),
        "fidelity": lambda _: g.evaluate(*HOW),
        "generate": lambda _: g.evaluate("generation", *HOW),
        "evaluate": g.task_choice,
        "report": lambda _: g.report(),
    }
    return json.loads(of[stage](wildcards))
