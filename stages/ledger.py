"""Write the text of dvc.yaml, and the expected provenance of every artifact, from code and params.yaml.

python -m stages.ledger    prints {"claims": see stages/support/expected.py, "dvc.yaml": its text} as JSON

dvc.yaml has one stage per workflow stage. What you set in it stays: comments, options of an output, such as
`push: false` for results/capture, plots, and stages of your own. `mergemoe audit REV` runs this module of the audited
revision, so its name and what it prints stay as they are.
"""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from mergemoe.artifacts import paths
from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import STAGES, dvc_stages, stages_of
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from stages.support import expected, tracking
from stages.support.graph import Graph

HEAD = """\
# The ledger: one stage per workflow stage, so that DVC versions what Snakemake made. `mergemoe record` renews this file
# from the code and params.yaml. It keeps what you write: comments, options of an output, plots, and stages of your own.
# Snakemake is the engine: run `snakemake --cores all`, then `mergemoe record`. Before that, `dvc repro` deletes a
# changed stage's outputs and makes all of them again. To keep large captures out of `dvc push`, though hashed, write
# `results/capture: {push: false}` in place of `results/capture`.
"""


SMALL = {"cache": False}  # git has it


def stages(graph: Graph) -> dict[str, dict[str, Any]]:
    """Return the stages of dvc.yaml that the runs need, in data-flow order."""
    return {name: _entry(name, graph) for name in graph.targets()}


def _entry(name: str, graph: Graph) -> dict[str, Any]:
    inside = stages_of(name)
    rules = [stage.name for stage in inside]
    weights = _weights(graph, copies=name != "layout") if any(one.checkpoint != "none" for one in inside) else []
    code = tracking.sources(*(f"stages.{rule}" for rule in rules), *_methods(inside, graph))
    read = {STAGES[other].dvc for stage in inside for other in stage.reads} - {name}
    entry: dict[str, Any] = {
        "cmd": f"snakemake --cores all --allowed-rules {' '.join(rules)} stage_{name} -- stage_{name}",
        "deps": [
            *weights,
            *_texts(name, graph),
            *(path.relative_to(tracking.ROOT).as_posix() for path in code),
            *(["mergemoe/report/templates"] if name == "report" else []),
            *(STAGES[dvc].folder for dvc in graph.targets() if dvc in read),
        ],
        "params": [*dict.fromkeys(section for stage in inside for section in _sections(stage, graph)), "runs"],
        "outs": _outs(name, graph),
    }
    if name == "report":
        entry["metrics"] = [{paths.METRICS: SMALL}]
    return entry


def _sections(stage: Stage, graph: Graph) -> list[str]:
    """Return the sections of params.yaml that a stage reads; not one without choices, which may not be in the file."""
    return [section for section in stage.sections if getattr(graph.params, section)]


def _outs(name: str, graph: Graph) -> list[Any]:
    """Return the folders that a stage fills: its own, and those of the optional rules that the runs need."""
    used = {stage for stage, _ in graph.jobs}
    folders = [
        STAGES[name].folder,
        *(stage.folder for stage in stages_of(name) if stage.optional and stage.name in used),
    ]
    more = [paths.CARDS, {paths.QUALITY: SMALL}, {paths.ERRORS: SMALL}] if name == "report" else []
    return [*dict.fromkeys(folders), *more]


def _weights(graph: Graph, copies: bool) -> list[str]:
    """Return the checkpoints that are read: what was brought of a hub model stands in the record of its fetch."""
    found = []
    for name in graph.layers:
        model = graph.params.model[name]
        if copies and model.copied():
            found.append(STAGES["convert"].folder)
        else:
            record = [str(hub_cache.fetch_record_path(model.path, model.revision))] if model.revision else []
            found += record or model.paths()
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


def _methods(inside: Sequence[Stage], graph: Graph) -> list[str]:
    """Return the modules of the methods, if one of the stages loads them by name."""
    used = sorted({graph.params.solve[run.solve].method for run in graph.runs})
    return [f"mergemoe.methods.{method}" for method in used] if any(stage.method for stage in inside) else []


def renewed(text: str, graph: Graph) -> str:
    """Return the text of dvc.yaml; of the old `text` comments, options of outputs, plots and further stages stay."""
    yml = YAML()
    yml.width = 120
    yml.indent(mapping=2, sequence=4, offset=2)
    yml.representer.ignore_aliases = lambda data: True  # a value that occurs twice is written twice
    document = yml.load(text or HEAD + "stages: {}\n")
    old, new = document["stages"], stages(graph)
    old.fa.set_block_style()
    for place, (name, entry) in enumerate(new.items()):
        if name not in old:
            old.insert(place, name, CommentedMap())
        for key, value in entry.items():
            old[name][key] = value if isinstance(value, str) else _renewed_list(old[name].get(key, []), value)
        for key in old[name].keys() - entry.keys():
            del old[name][key]
    for name in (name for name in dvc_stages() if name in old and name not in new):
        del old[name]
    written = io.StringIO()
    yml.dump(document, written)
    return written.getvalue()


def _renewed_list(old: list[Any], new: list[Any]) -> CommentedSeq:
    """Return the new list, with the comments and options of the old one's items, and a comment below its end."""
    comments = dict(old.ca.items) if isinstance(old, CommentedSeq) else {}
    last = len(old) - 1
    below = comments.pop(last) if last in comments and comments[last][0].value.startswith("\n") else None
    places = {_path(item): place for place, item in enumerate(old)}
    items = CommentedSeq()
    for item in new:
        place = places.get(_path(item))
        items.append(item if place is None or isinstance(old[place], str) else old[place])
        if place in comments:
            items.ca.items[len(items) - 1] = comments[place]
    if below:
        items.ca.items[len(items) - 1] = below
    return items


def _path(item: Any) -> str:
    return item if isinstance(item, str) else next(iter(item))


def main() -> None:
    """Read params.yaml and dvc.yaml, print what both must be."""
    try:
        graph = Graph(read_params(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))))
    except UserError as error:
        sys.exit(f"error: {error}")
    path = Path("dvc.yaml")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    print(json.dumps({"claims": expected.every_claim(graph), "dvc.yaml": renewed(text, graph)}))


if __name__ == "__main__":
    main()
