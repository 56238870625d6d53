"""What the ledger must say, made from the Snakefile's rules, their code and params.yaml: dvc.yaml, and every claim.

python -m stages.ledger    prints {"claims": see stages/support/expected.py, "dvc.yaml": its text} as JSON

dvc.yaml has one stage per workflow stage. What you set in it stays: options of an output, such as `push: false` for
results/capture, plots, and stages of your own.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mergemoe.checkpoints import hub_cache
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from stages.support import expected, tracking
from stages.support.graph import Graph

HEAD = """\
# The ledger: one stage per workflow stage, so that DVC versions what Snakemake made. `mergemoe record` writes this file
# anew from the code and params.yaml; what stays is what you set of an output, plots, and stages of your own.
# Snakemake is the engine: run `snakemake --cores all`, then `mergemoe record`. Before that, `dvc repro` deletes a
# changed stage's outputs and makes all of them again. To keep large captures out of `dvc push`, though hashed, write
# `results/capture: {push: false}` in place of `results/capture`.
"""


class Stage(NamedTuple):
    """What dvc.yaml says of one workflow stage."""

    rules: tuple[str, ...]
    params: tuple[str, ...]  # sections of params.yaml, besides `runs`
    upstream: tuple[str, ...]  # stages that it reads
    weights: bool = True  # whether it reads the checkpoint


STAGES = {
    "layout": Stage(("convert", "layout"), ("model",), ()),
    "calibrate": Stage(("calibrate",), ("calibrate",), ("layout",), weights=False),
    "capture": Stage(("capture",), ("capture",), ("layout", "calibrate")),
    "profile": Stage(("profile",), ("profile",), ("layout", "capture")),
    "cluster": Stage(("curve", "budget", "cluster"), ("cluster",), ("layout", "capture", "profile")),
    "solve": Stage(("solve",), ("solve",), ("layout", "capture", "profile", "cluster")),
    "assemble": Stage(("assemble",), ("model", "calibrate", "capture", "cluster", "solve"), ("layout", "solve")),
    "evaluate": Stage(("reference", "fidelity", "generate", "evaluate"), ("evaluate",), ("layout", "assemble")),
    "report": Stage(
        ("report",),
        ("evaluate",),
        ("layout", "profile", "cluster", "solve", "assemble", "evaluate"),
        weights=False,
    ),
}
FOLDERS = {"assemble": "results/models", "evaluate": "results/scores"}  # the others' are called like the stage
SMALL = {"cache": False}  # git has it


def stages(graph: Graph) -> dict[str, dict[str, Any]]:
    """Return the stages of dvc.yaml, in data-flow order."""
    return {name: _entry(name, stage, graph) for name, stage in STAGES.items()}


def _entry(name: str, stage: Stage, graph: Graph) -> dict[str, Any]:
    outs = _outs(name, graph)
    weights = _weights(graph, copies=name != "layout") if stage.weights else []
    code = tracking.sources(*(f"stages.{rule}" for rule in stage.rules), *_methods(name, graph))
    read = [FOLDERS.get(name, f"results/{name}") for name in stage.upstream]
    entry: dict[str, Any] = {
        "cmd": f"snakemake --cores all --allowed-rules {' '.join(stage.rules)} stage_{name} -- stage_{name}",
        "deps": [
            *weights,
            *_texts(name, graph),
            *(path.relative_to(tracking.ROOT).as_posix() for path in code),
            *(["mergemoe/report/templates"] if name == "report" else []),
            *read,
        ],
        "params": [*stage.params, "runs"],
        "outs": outs,
    }
    if name == "report":
        entry["metrics"] = [{"results/metrics.json": SMALL}]
    return entry


def _outs(name: str, graph: Graph) -> list[Any]:
    used = {run.cluster for run in graph.runs}
    spent = [graph.params.cluster[cluster] for cluster in used if graph.params.cluster[cluster].spent()]
    more: dict[str, list[Any]] = {
        "layout": ["results/convert"] if any(graph.params.model[m].copied() for m in graph.layers) else [],
        "cluster": [
            *(["results/curve"] if any(chosen.budget != "usage" for chosen in spent) else []),
            *(["results/budget"] if spent else []),
        ],
        "report": ["results/cards", {"results/quality.csv": SMALL}, {"results/errors.csv": SMALL}],
    }
    return [FOLDERS.get(name, f"results/{name}"), *more.get(name, [])]


def _weights(graph: Graph, copies: bool) -> list[str]:
    """Return the checkpoints that are read: what was brought of a hub model stands in the record of its fetch."""
    found = []
    for name in graph.layers:
        model = graph.params.model[name]
        if copies and model.copied():
            found.append("results/convert")
        else:
            found.append(str(hub_cache.record(model.path, model.revision)) if model.revision else model.path)
    return list(dict.fromkeys(found))


def _texts(name: str, graph: Graph) -> list[str]:
    evaluate = graph.params.evaluate
    if name == "calibrate":
        used = [graph.params.calibrate[run.calibrate].source for run in graph.runs]
    elif name == "evaluate":
        tasks = evaluate.tasks.values()
        used = [
            evaluate.heldout.source,
            *(t.include for t in tasks),
            *(f for t in tasks for f in t.data_files.values()),
        ]
    else:
        used = []
    return sorted({path for path in used if path})


def _methods(name: str, graph: Graph) -> list[str]:
    """Return the modules of the methods, which a solve loads by name."""
    used = sorted({graph.params.solve[run.solve].method for run in graph.runs})
    return [f"mergemoe.methods.{method}" for method in used] if name == "solve" else []


def renewed(document: dict[str, Any], graph: Graph) -> str:
    """Return the text of dvc.yaml, with the options of outputs, the plots and further stages of `document`."""
    old = document.get("stages", {})
    new = stages(graph)
    for name, entry in new.items():
        kept = _options(old.get(name, {}))
        entry["outs"] = [_with(out, kept) for out in entry["outs"]]
    whole = {**document, "stages": new | {name: entry for name, entry in old.items() if name not in new}}
    return HEAD + yaml.dump(whole, Dumper=_Plain, sort_keys=False, width=120)


def _options(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {path: options for out in entry.get("outs", []) if isinstance(out, dict) for path, options in out.items()}


def _with(out: Any, kept: dict[str, dict[str, Any]]) -> Any:
    path = out if isinstance(out, str) else next(iter(out))
    options = ({} if isinstance(out, str) else out[path]) | kept.get(path, {})
    return {path: options} if options else path


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # a value that occurs twice is written twice
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # lists stand in, as people write
        return super().increase_indent(flow, indentless=False)


def main() -> None:
    """Read params.yaml and dvc.yaml, print what both must be."""
    try:
        graph = Graph(read_params(yaml.safe_load(Path("params.yaml").read_text())))
    except UserError as error:
        sys.exit(f"error: {error}")
    path = Path("dvc.yaml")
    document = yaml.safe_load(path.read_text()) if path.is_file() else {}
    print(json.dumps({"claims": expected.claims(graph), "dvc.yaml": renewed(document, graph)}))


if __name__ == "__main__":
    main()
