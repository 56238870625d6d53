"""The report: one HTML page that opens anywhere, offline, and is the same bytes when made twice.

A page is the sections of each model, see mergemoe/sections.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mergemoe import cards, plots
from mergemoe.holes import Hole
from mergemoe.metrics import Metrics, shown
from mergemoe.sections import SECTIONS, Section, calibration, cost, errors, experts, label, overview, scores
from mergemoe.study import Model

# Plotly.js's bundle of bars and lines, a quarter of the whole; tests hold its version to Python's plotly.
PLOTLY = Path(__file__).with_name("templates").joinpath("plotly-basic.min.js").read_text()


# Pages of some sections, each small enough for a data URL of Snakemake's own report: Chromium takes 2 MiB.
PARTS = {
    "quality": (overview, scores, cost),
    "errors": (errors,),
    "experts": (experts,),
    "calibration": (calibration,),
}


def page(
    models: Sequence[Model],
    metrics: Metrics,
    provenance: Mapping[str, Any],
    holes: Sequence[Hole] | None = None,
    part: str | None = None,
) -> str:
    """Return the whole page; `metrics` and `provenance` are in it as JSON, too.

    With `holes` it says that it is partial, and what it lacks; `part` has only the sections of `PARTS` by that name.
    """
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
    return env.get_template("page.html").render(
        articles=[_article(env, model, marks, PARTS[part] if part else tuple(SECTIONS)) for model in models],
        holes=holes,
        metrics=metrics,
        provenance=provenance,
        house=plots.HOUSE.to_plotly_json(),
        plotly=Markup(PLOTLY),
    )


def _article(
    env: Environment, model: Model, marks: Mapping[str, plots.Mark], sections: Sequence[Section]
) -> list[Markup]:
    """Return the sections of a model; one that has nothing to say is left out."""
    contexts = {section: context for section in sections if (context := section(model, marks)) is not None}
    contents = {f"{model.name}-{section.__name__}": SECTIONS[section] for section in contexts}
    return [
        Markup(
            env.get_template(f"{section.__name__}.html").render(
                model=model, marks=marks, contents=contents, anchor=f"{model.name}-{section.__name__}", **context
            )
        )
        for section, context in contexts.items()
    ]
