"""The report: one HTML page that opens anywhere, offline, and is the same bytes when made twice.

A page is the sections of each model, in the order of `SECTIONS`. A section is one function here, which
chooses the numbers, and one template of the same name, which lays them out; to add one, add both.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mergemoe import cards, plots
from mergemoe.metrics import SAME_SIZE, Metrics, measured, shown
from mergemoe.study import Model

LABELS = {
    "fidelity/kl": "KL\u00a0↓",
    "fidelity/perplexity": "perplexity\u00a0↓",
    "fidelity/top1": "equal top-1\u00a0↑",
    "fidelity/output_error": "output error\u00a0↓",
    "generation/loops": "loops\u00a0↓",
    "generation/distinct2": "distinct-2\u00a0↑",
}
Marks = Mapping[str, plots.Mark]
Context = dict[str, Any]


def page(models: Sequence[Model], metrics: Metrics, provenance: Mapping[str, Any]) -> str:
    """Return the whole page; `metrics` and `provenance` are in it as JSON, too."""
    env = Environment(
        loader=PackageLoader("mergemoe"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"shown": shown, "label": label, "listed": cards.listed}
    marks = plots.marks(run.method for model in models for run in model.runs)
    articles = [(model, [_render(env, section, model, marks) for section in SECTIONS]) for model in models]
    return env.get_template("page.html").render(
        articles=articles, metrics=metrics, provenance=provenance, plotly=Markup(get_plotlyjs())
    )


def _render(env: Environment, section: Callable[[Model, Marks], Context], model: Model, marks: Marks) -> Markup:
    name = section.__name__
    return Markup(env.get_template(f"{name}.html").render(model=model, marks=marks, **section(model, marks)))


def label(key: str) -> str:
    """Return a score's name for people; the arrow points to the better side."""
    return LABELS.get(key, key.replace("/", " ") + ("\u00a0↑" if "acc" in key else ""))


def overview(model: Model, marks: Marks) -> Context:
    """What was compressed, what came out best, and every score over size."""
    figures = {}
    for key in model.columns:
        points = [
            plots.Point(
                run=run.name,
                method=run.method,
                share=run.scores["cost/bytes"] / model.full["cost/bytes"],
                value=run.scores[key],
                error=run.scores.get(f"{key}_stderr"),
            )
            for run in model.runs
            if key in run.scores
        ]
        figures[key] = plots.quality(label(key), key, model.full.get(key), points, marks).to_plotly_json()
    return {"figures": figures, "same_size": SAME_SIZE, "measured": measured}


def scores(model: Model, marks: Marks) -> Context:
    """Every run's size and scores, to be sorted by any of them."""
    keys = [*model.columns, *(["fidelity/output_error"] if "fidelity" in model.tasks else [])]
    return {"keys": keys, "kept": {run.name: _kept(run.solved) for run in model.runs}}


def _kept(solved: Sequence[Mapping[str, Any]]) -> str:
    """Return the experts per layer before and after: one pair, or the totals where layers differ."""
    pairs = {(layer["experts"], layer["kept"]) for layer in solved}
    if len(pairs) == 1:
        return "{} → {}".format(*pairs.pop())
    return f"{sum(layer['experts'] for layer in solved)} → {sum(layer['kept'] for layer in solved)} in all"


def layers(model: Model, marks: Marks) -> Context:
    """Where the error arises: each layer's output error, one picture per grouping."""
    pictures: dict[str, list[plots.Line]] = {}
    for run in model.runs:
        errors = [layer["output_error"] for layer in run.solved]
        grouping, _, solve = run.name.rpartition("/")
        line = plots.Line(
            name=solve,
            method=run.method,
            layers=[layer["layer"] for layer in run.solved],
            fit=[error["fit"] for error in errors],
            heldout=[error["heldout"] for error in errors],
        )
        pictures.setdefault(grouping, []).append(line)
    axis = plots.error_axis(line for lines in pictures.values() for line in lines)
    figures = {name: plots.layer_errors(name, lines, marks, axis) for name, lines in pictures.items()}
    return {"figures": {name: figure.to_plotly_json() for name, figure in figures.items()}}


def experts(model: Model, marks: Marks) -> Context:
    """How often the router chooses each expert, and how much it matters."""
    return {"figures": {name: plots.experts(layers).to_plotly_json() for name, layers in model.profiles.items()}}


def parameters(model: Model, marks: Marks) -> Context:
    """What each run was made with."""
    return {"stages": cards.STAGES}


def loading(model: Model, marks: Marks) -> Context:
    """The lines that load the winner, or the first run where none was chosen."""
    run = model.winner or model.runs[0]
    return {"run": run, "texts": cards.loading(run.folder, run.stock)}


SECTIONS = (overview, scores, layers, experts, parameters, loading)
