"""What the provenance of every artifact must say, by params.yaml and the code as they are now.

{path: {stage, params, code}}, where the path is the first output of the job.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergemoe import jobs, provenance, store
from mergemoe.errors import ArtifactError, UserError
from stages import graph
from stages.graph import Graph
from stages.tracking import code

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
RUNS = Path("scratch", "runs")
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


def begin(told: dict[str, dict[str, Any]]) -> None:
    """Write the claims where this run's jobs find them, which refuse an input that was made otherwise.

    The file's name is the run's own. Jobs of an earlier run that was killed do not find theirs any more, and end.
    """
    end()
    path = RUNS / f"{uuid.uuid4()}.json"
    with store.atomic(path) as file:
        file.write_text(json.dumps(told))
    os.environ[store.RUN] = str(path)


def end() -> None:
    """End the run, whichever it was: a job of it that still runs, of a node that was believed dead, writes no more."""
    os.environ.pop(store.RUN, None)
    shutil.rmtree(RUNS, ignore_errors=True)


def forget(g: Graph, failed: Iterable[Any]) -> None:
    """Delete of the outputs of Snakemake's failed jobs what was there before, made otherwise than the claims say.

    With `keep-incomplete`, which the SLURM profile sets, Snakemake keeps what was there before a job that could not
    be submitted, and notes it as made with the parameters of now.
    """
    told, known = claims(g), dict[str, str]()
    single = [job for one in failed for job in (one.jobs if one.is_group() else [one])]
    for path in filter(Path.exists, (Path(output) for job in single for output in job.output)):
        try:
            provenance.check_input(path, told, known)
        except ArtifactError:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_run() -> None:
    """Check that the run is not over, before Snakemake deletes what a job begins with deleting.

    Raises:
        UserError: where it is.
    """
    if store.run_is_over():
        raise UserError(store.OVER)


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
