"""The report: one HTML page that opens anywhere, offline, and is the same bytes when made twice.

A page is the sections of each model, see mergemoe/report/sections.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mergemoe.compressed import checkpoint_card
from mergemoe.report import plot_style
from mergemoe.report.metrics import Metrics, shown
from mergemoe.report.missing_results import Missing
from mergemoe.report.sections import SECTIONS, Section, calibration, cost, errors, experts, label, overview, scores
from mergemoe.report.study import ModelResults

# Plotly.js's bundle of bars and lines, a quarter of the whole; tests hold its version to Python's plotly.
PLOTLY = Path(__file__).with_name("templates").joinpath("plotly-basic.min.js").read_text(encoding="utf-8")


# Pages of some sections, each small enough for a data URL of Snakemake's own report: Chromium takes 2 MiB.
PARTS = {
    "quality": (overview, scores, cost),
    "errors": (errors,),
    "experts": (experts,),
    "calibration": (calibration,),
}


def render_page(
    models: Sequence[ModelResults],
    metrics: Metrics,
    provenance: Mapping[str, Any],
    missing: Sequence[Missing] | None = None,
    part: str | None = None,
) -> str:
    """Return the whole page; `metrics` and `provenance` are in it as JSON, too.

    With `missing` it says that it is partial, and what it lacks; `part` has only the sections of `PARTS` by that name.
    """
    env = Environment(
        loader=PackageLoader("mergemoe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"shown": shown, "label": label, "listed": checkpoint_card.listed_parameters}
    marks = plot_style.marks(run.method for model in models for run in model.runs)
    return env.get_template("page.html").render(
        articles=[_article(env, model, marks, PARTS[part] if part else tuple(SECTIONS)) for model in models],
        missing=missing,
        metrics=metrics,
        provenance=provenance,
        house=plot_style.HOUSE.to_plotly_json(),
        plotly=Markup(PLOTLY),
    )


def _article(
    env: Environment, model: ModelResults, marks: Mapping[str, plot_style.Mark], sections: Sequence[Section]
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
