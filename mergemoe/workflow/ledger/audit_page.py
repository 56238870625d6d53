"""Page of an audit's findings: one HTML file that opens offline, in the style of the report (report/page.py)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mergemoe.artifacts import paths
from mergemoe.report import plot_style
from mergemoe.report.metrics import shown
from mergemoe.report.page import PLOTLY
from mergemoe.report.plot_style import GREY, HOUSE, Mark
from mergemoe.workflow.comparison.bounds import BOUNDS
from mergemoe.workflow.ledger import audit_text

SEEN = 0.01  # standard errors; scores that moved by less are folded away
_LAYER = re.compile(rf"/layer_({paths.PATTERNS['layer']})\.")


class Part(NamedTuple):
    """A part of a result that differs from the recorded one."""

    stage: str
    layer: int | None  # None if the file holds more than one layer, or none
    size: float  # ||a - b|| / ||a||; infinite if the part differs in more than numbers
    path: str
    name: str


class Score(NamedTuple):
    """A number of metrics.json that is not the committed one."""

    run: str
    name: str
    committed: float | None
    here: float | None
    difference: float | None
    moved: float | None  # by how many standard errors


def render_audit(found: Mapping[str, Any]) -> str:
    """Return the page of an audit's findings (audit.py)."""
    env = Environment(
        loader=ChoiceLoader([PackageLoader("mergemoe.workflow.ledger"), PackageLoader("mergemoe.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"shown": shown, "size": _size}
    parts = _parts(found["stages"])
    scores = _scores(found["metrics"]["differ"])
    placed = [part for part in parts if part.layer is not None]
    marks = plot_style.marks(part.stage for part in placed)
    return env.get_template("audit.html").render(
        found=found,
        conclusion=audit_text.conclusion(found),
        ties=[tie for one in found["stages"].values() for tie in one["ties"]],
        rows=audit_text.stage_rows(found),
        largest=max(parts, key=lambda part: part.size, default=None),
        parts_at=_parts_at(found),
        marks=marks,
        picture=plot_style.switched({"": _picture(placed, marks)}) if placed else None,
        crossed=any(math.isinf(part.size) for part in placed),
        elsewhere=_largest(part for part in parts if part.layer is None),
        files={name: _files(one) for name, one in found["stages"].items()},
        moved=audit_text.moved_scores(found["metrics"]),
        scores=[score for score in scores if score.moved is not None and score.moved >= SEEN],
        others=[score for score in scores if score.moved is None or score.moved < SEEN],
        seen=SEEN,
        listed=audit_text.LISTED,
        house=HOUSE.to_plotly_json(),
        plotly=Markup(PLOTLY),
    )


def _size(size: float) -> str:
    return f"{size:.1e}" if math.isfinite(size) else "more than numbers"


def _parts_at(found: Mapping[str, Any]) -> str | None:
    """Return the first stage whose results differ: the rerun's if there was one, or those that are here."""
    if "again" in found:
        return found["parts_at"]
    return next((name for name, one in found["stages"].items() if one["apart"]), None)


def _parts(stages: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = []
    for stage, one in stages.items():
        for path, apart in one["apart"].items():
            layer = int(placed[1]) if (placed := _LAYER.search(path)) else None
            sizes = dict.fromkeys(apart["decisions"], math.inf) | apart["numbers"]
            # A size may be NaN, which is neither smaller nor larger than another.
            parts += [Part(stage, layer, size if size < math.inf else math.inf, path, n) for n, size in sizes.items()]
    return parts


def _largest(parts: Iterable[Part]) -> list[Part]:
    """Return the largest part of each stage and layer."""
    largest: dict[tuple[str, int | None], Part] = {}
    for part in parts:
        key = (part.stage, part.layer)
        largest[key] = max(largest.get(key, part), part, key=lambda one: one.size)
    return list(largest.values())


def _files(stage: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return {path: how it differs} of a stage."""
    told = {
        path: [
            *(f"{name} is another" for name in apart["decisions"]),
            *(f"{name} by {size:.1e}" for name, size in apart["numbers"].items()),
        ]
        for path, apart in stage["apart"].items()
    }
    unlike = {path: ["not the bytes of dvc.lock"] for path in stage["other_bytes"]}
    for path in stage.get("differ", []):
        unlike[path] = ["another payload" if path in stage["other_payload"] else "made by other code, same payload"]
    return unlike | told


def _scores(differ: Mapping[str, Sequence[float | None]]) -> list[Score]:
    """Return the numbers that differ, those that moved by the most standard errors first."""
    scores: list[Score] = []
    for key, (committed, here, error) in differ.items():
        run, _, name = key.partition(" ")
        difference = None if committed is None or here is None else here - committed
        moved = abs(difference) / error if error and difference is not None else None
        scores.append(Score(run, name, committed, here, difference, moved))
    return sorted(scores, key=lambda score: -(score.moved or 0.0))


def _picture(parts: Sequence[Part], marks: Mapping[str, Mark]) -> go.Figure:
    """Draw the largest difference of each stage over the layers, and the bounds up to which rounding explains them."""
    numbers = _largest(part for part in parts if math.isfinite(part.size))
    bounds = {part.stage: BOUNDS[part.stage] for part in numbers}
    values = [*(part.size for part in numbers), *bounds.values()]
    top = 10 * max(values, default=0.1)
    at = [part.layer for part in parts if part.layer is not None]
    layers = range(min(at), max(at) + 1)
    ends = [layers[0] - 0.5, layers[-1] + 0.5]
    figure = go.Figure(layout={"template": HOUSE, "margin": {"t": 12}})
    for stage in bounds:
        _add_stage(figure, [part for part in numbers if part.stage == stage], marks[stage], layers)
    for bound in sorted({*bounds.values()}):
        _add_bound(figure, bound, ", ".join(stage for stage in bounds if bounds[stage] == bound), ends)
    for part in _largest(part for part in parts if math.isinf(part.size)):
        figure.add_scatter(
            x=[part.layer],
            y=[top],
            mode="markers",
            marker={"color": marks[part.stage].colour, "symbol": "x", "size": 11},
            name=part.stage,
            hovertemplate=f"{_hover(part)}<br>more than numbers<extra></extra>",
        )
    figure.update_xaxes(plot_style.layer_axis(layers), range=ends)
    figure.update_yaxes(plot_style.logarithmic([*values, top]), title_text="largest difference / norm")
    return figure


def _add_stage(figure: go.Figure, parts: Sequence[Part], mark: Mark, layers: Sequence[int]) -> None:
    """Add the line of a stage; a layer that does not differ is a gap in it."""
    at = {part.layer: part for part in parts}
    figure.add_scatter(
        x=list(layers),
        y=plot_style.rounded(at[layer].size if layer in at else None for layer in layers),
        mode="lines+markers",
        line={"color": mark.colour, "width": 2},
        marker={"symbol": mark.symbol, "size": 8},
        name=parts[0].stage,
        customdata=[_hover(at[layer]) if layer in at else None for layer in layers],
        hovertemplate="%{customdata}<br>%{y:.1e}<extra></extra>",
    )


def _add_bound(figure: go.Figure, bound: float, stages: str, ends: Sequence[float]) -> None:
    figure.add_scatter(
        x=ends,
        y=[bound, bound],
        mode="lines+text",
        line={"color": GREY, "dash": "dash", "width": 1},
        text=[f"bound of {stages}", ""],
        textposition="top right",
        name=f"bound of {stages}",
        hoverinfo="skip",
    )


def _hover(part: Part) -> str:
    """Return where a part is; Plotly reads HTML in it."""
    return f"{part.stage}, layer {part.layer}<br>{escape(part.path)}<br>{escape(part.name)}"
