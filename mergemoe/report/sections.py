"""The sections of a model's article, in the order of `SECTIONS`.

A section is one function here, which chooses the numbers, and one template of the same name, which lays them out; to
add one, add both. A function returns None if a study has nothing for its section.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergemoe.compressed import checkpoint_card
from mergemoe.moe.records import LayerSolve
from mergemoe.report import expert_chart, plot_style, refine_plots, score_plots, token_plots, token_sufficiency
from mergemoe.report.metrics import SAME_SIZE, generation, measured
from mergemoe.report.study import ModelResults, RunResults

LABELS = {
    "fidelity/kl": "KL\u00a0↓",
    "fidelity/perplexity": "perplexity\u00a0↓",
    "fidelity/top1": "equal top-1\u00a0↑",
    "fidelity/output_error": "output error\u00a0↓",
    "generation/loops": "loops\u00a0↓",
    "generation/distinct1": "distinct-1\u00a0↑",
    "generation/distinct2": "distinct-2\u00a0↑",
    "generation/distinct3": "distinct-3\u00a0↑",
    "generation/length": "tokens",
    "generation/perplexity": "perplexity under the full model",
}
PICTURES = 4  # of a first screen; further scores share the last one
COSTS = {"parameters": "parameters", "bytes": "bytes", "flops_per_token": "FLOPs per token"}
Marks = Mapping[str, plot_style.Mark]
Context = dict[str, Any]


def label(key: str) -> str:
    """Return a score's name for people; the arrow points to the better side."""
    return LABELS.get(key, key.replace("/", " ") + ("\u00a0↑" if "acc" in key else ""))


def overview(model: ModelResults, marks: Marks) -> Context:
    """What was compressed, what came out best, and every score over size."""
    figures = {
        key: score_plots.quality(label(key), key, model.full.get(key), _points(model, key), marks)
        for key in model.columns
    }
    apart = list(figures) if len(figures) <= PICTURES else list(figures)[: PICTURES - 1]
    pictures = [plot_style.switched({key: figures.pop(key)}) for key in apart]
    return {
        "pictures": [*pictures, *([plot_style.switched(figures)] if figures else [])],
        "together": list(figures),
        "tiles": model.columns[:PICTURES],
    }


def _points(model: ModelResults, key: str) -> list[score_plots.Point]:
    return [
        score_plots.Point(
            run=run.name,
            method=run.method,
            share=run.scores["cost/bytes"] / model.full["cost/bytes"],
            value=run.scores[key],
            error=run.scores.get(f"{key}_stderr"),
        )
        for run in model.runs
        if key in run.scores
    ]


def scores(model: ModelResults, marks: Marks) -> Context:
    """Every run's size and scores, to be sorted by any of them."""
    keys = [*model.columns, *(["fidelity/output_error"] if "fidelity" in model.tasks else [])]
    kept = {run.name: _kept(run.solved) for run in model.runs}
    return {"keys": keys, "kept": kept, "measured": measured, "same_size": SAME_SIZE}


def _kept(solved: Sequence[LayerSolve]) -> str:
    """Return the experts per layer before and after: one pair, or the totals if layers differ."""
    pairs = {(layer["experts"], layer["kept"]) for layer in solved}
    if len(pairs) == 1:
        return "{} → {}".format(*pairs.pop())
    return f"{sum(layer['experts'] for layer in solved)} → {sum(layer['kept'] for layer in solved)} in all"


def errors(model: ModelResults, marks: Marks) -> Context:
    """Where the error arises: over the layers, of all runs at one layer, and while layers are refined."""
    lines = [
        score_plots.Line(
            run=run.name,
            grouping=run.grouping,
            method=run.method,
            layers=[layer["layer"] for layer in run.solved],
            fit=plot_style.rounded(error["fit"] for error in run.errors),
            heldout=plot_style.rounded(error["heldout"] for error in run.errors),
        )
        for run in model.runs
    ]
    axis = plot_style.logarithmic_range(error for line in lines for error in (*line.fit, *line.heldout))
    groupings, methods = sorted({line.grouping for line in lines}), sorted({line.method for line in lines})
    chosen = {name: [line for line in lines if name in (line.grouping, line.method)] for name in groupings + methods}
    some = {name: score_plots.errors(few, marks, axis, fit=True) for name, few in chosen.items()}
    layers = lines[0].layers
    descents = {run.name: refine_plots.descent(run.refined) for run in model.runs if run.refined}
    return {
        "over_layers": plot_style.switched({"all": score_plots.errors(lines, marks, axis, fit=False), **some}),
        "at_layer": plot_style.switched(
            {str(layer): score_plots.layer(place, lines, marks, axis) for place, layer in enumerate(layers)}
        ),
        "groupings": groupings,
        "methods": methods,
        "layers": layers,
        "descents": plot_style.switched(descents) if descents else None,
    }


def experts(model: ModelResults, marks: Marks) -> Context:
    """How often the router chooses each expert, how much it matters, and whom it was merged with."""
    layers = [layer["layer"] for layer in model.layout["layers"]]
    profiles, groupings = {}, {}
    for name, told in model.profiles.items():
        profiles[name] = dict(zip(layers, map(expert_chart.profiled, told), strict=True))
    for name, told in model.groupings.items():
        own = profiles[name.partition("/")[0]]
        groupings[name] = {
            layer: expert_chart.grouped(one, own[layer]["usage"]) for layer, one in zip(layers, told, strict=True)
        }
    return {"map": {"profiles": profiles, "groupings": groupings}, "first": _first(model).grouping}


def _first(model: ModelResults) -> RunResults:
    """Return the run that is shown first: the winner, if one was chosen."""
    return model.winner or model.runs[0]


def calibration(model: ModelResults, marks: Marks) -> Context:
    """Whether the calibration tokens were enough, per layer: of each grouping a picture, of each run a table."""
    figures = {name: token_plots.tokens(groupings) for name, groupings in model.groupings.items()}
    return {
        "figures": plot_style.switched({run.name: figures[run.grouping] for run in model.runs}),
        "rows": {run.name: list(map(token_sufficiency.worst, run.solved, run.errors)) for run in model.runs},
        "first": _first(model).name,
        "signs": {name: (token_plots.SIGN[name], colour) for name, colour in token_plots.COLOUR.items()},
    }


def texts(model: ModelResults, marks: Marks) -> Context | None:
    """How the models go on by themselves: the numbers, and the same prompts continued side by side."""
    if not model.texts:
        return None
    found = generation(model.full)
    samples = [
        {
            "prompt": own["prompt"],
            "full": own["text"],
            "runs": {run.name: run.texts[place]["text"] for run in model.runs},
        }
        for place, own in enumerate(model.texts)
    ]
    return {"keys": [key for key in LABELS if key in found], "samples": samples}


def cost(model: ModelResults, marks: Marks) -> Context:
    """What each run costs beside the full model, counted."""
    return {"costs": COSTS}


def parameters(model: ModelResults, marks: Marks) -> Context:
    """What each run was made with."""
    return {"stages": {run.name: checkpoint_card.stages_of(run.parameters) for run in model.runs}}


def loading(model: ModelResults, marks: Marks) -> Context:
    """Return the lines that load the winner, or the first run if none was chosen."""
    run = _first(model)
    return {"run": run, "lines": checkpoint_card.loading_lines(run.folder, run.stock)}


Section = Callable[[ModelResults, Marks], Context | None]
# Of each section, its name in the table of contents.
SECTIONS: dict[Section, str] = {
    overview: "Overview",
    scores: "Scores",
    errors: "Errors",
    experts: "Experts",
    calibration: "Calibration",
    texts: "Texts",
    cost: "Cost",
    parameters: "Provenance",
    loading: "Loading",
}
