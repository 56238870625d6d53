"""The pictures of the report: plotly figures of plain lists, so that the same numbers give the same bytes.

One colour and one symbol per method, the same in every picture of a page. Text and grid take their colours
from the page's style, so that they follow it into the dark.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Mid tones that stand out on white and on near black. Symbols tell apart what the eye confuses; being one more
# than the colours, they make 72 different marks.
_COLOURS = ["#3b78d8", "#d9562b", "#16907f", "#a45fd0", "#b9770e", "#d1478c", "#6b8e23", "#2b95cc"]
_SYMBOLS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "star": "★",
    "cross": "✚",
    "pentagon": "⬟",
    "hexagon": "⬢",
}
_GREY = "#8a919c"
LOGARITHMIC = {"fidelity/kl", "fidelity/perplexity"}

_HOUSE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 48, "r": 12, "t": 34, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "title": {"x": 0, "xref": "paper", "font": {"size": 13}},
        "showlegend": False,
        "dragmode": False,  # a finger on a picture scrolls the page
        "hoverlabel": {"align": "left"},
        "xaxis": {
            "fixedrange": True,
            "gridcolor": "#ddd",
            "zeroline": False,
            "title": {"standoff": 8, "font": {"size": 12}},
        },
        "yaxis": {"fixedrange": True, "gridcolor": "#ddd", "zeroline": False, "automargin": True},
    }
)


class Mark(NamedTuple):
    """How a method is drawn."""

    colour: str
    symbol: str
    glyph: str  # the symbol as text, for legends and tables


class Point(NamedTuple):
    """One number of one run."""

    run: str
    method: str
    share: float  # of the full model's bytes
    value: float
    error: float | None


class Line(NamedTuple):
    """One number per layer of one run."""

    name: str
    method: str
    layers: Sequence[int]
    fit: Sequence[float]
    heldout: Sequence[float | None]


def marks(methods: Iterable[str]) -> dict[str, Mark]:
    """Return how each method is drawn."""
    symbols = list(_SYMBOLS.items())
    return {
        method: Mark(_COLOURS[i % len(_COLOURS)], *symbols[i % len(symbols)])
        for i, method in enumerate(sorted(set(methods)))
    }


def quality(title: str, key: str, full: float | None, points: Sequence[Point], drawn: Mapping[str, Mark]) -> go.Figure:
    """Draw a score over size, with one standard error; the full model is the dashed line."""
    figure = go.Figure(layout={"template": _HOUSE, "title": {"text": title}})
    for point in points:
        mark = drawn[point.method]
        figure.add_scatter(
            x=[point.share],
            y=[point.value],
            error_y={"array": [point.error or 0.0], "visible": point.error is not None, "thickness": 1.5},
            mode="markers",
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 11},
            name=point.run,
            hovertemplate="%{y:.4g} at %{x:.1%} of the bytes",
        )
    if full is not None:
        figure.add_scatter(
            x=[1.0], y=[full], mode="markers", marker={"color": _GREY, "size": 9}, name="full", hovertemplate="%{y:.4g}"
        )
        figure.add_hline(full, line={"color": _GREY, "dash": "dash", "width": 1})
    figure.update_xaxes(title_text="share of the full model's bytes", tickformat=".0%", range=[0, 1.06], dtick=0.25)
    if key in LOGARITHMIC:
        figure.update_yaxes(_logarithmic([full, *(point.value for point in points)]))
    return figure


def layer_errors(title: str, lines: Sequence[Line], drawn: Mapping[str, Mark], axis: Mapping[str, Any]) -> go.Figure:
    """Draw the output error of runs over the layers: held out as a line, on the fitted tokens dotted."""
    figure = go.Figure(layout={"template": _HOUSE, "title": {"text": title}, "hovermode": "x unified"})
    for line in lines:
        mark = drawn[line.method]
        look = {"x": list(line.layers), "marker": {"symbol": mark.symbol, "size": 8}, "hovertemplate": "%{y:.3g}"}
        stroke = {"color": mark.colour, "width": 2}
        figure.add_scatter(y=list(line.heldout), mode="lines+markers", line=stroke, name=line.name, **look)
        figure.add_scatter(
            y=list(line.fit), mode="lines", line={**stroke, "dash": "dot"}, name=f"{line.name}, fit", **look
        )
    figure.update_xaxes(title_text="layer", tickformat="d", dtick=1 if len(lines[0].layers) <= 16 else None)
    figure.update_yaxes(axis)
    return figure


def error_axis(lines: Iterable[Line]) -> dict[str, Any]:
    """Return the one vertical axis of several pictures of errors, so that they can be compared by eye."""
    errors = [error for line in lines for error in (*line.fit, *line.heldout)]
    axis = _logarithmic(errors)
    low, high = (math.log10(end) for end in _ends(errors))
    return {**axis, "range": [low - 0.1, high + 0.1]}


def _logarithmic(values: Iterable[float | None]) -> dict[str, Any]:
    """Return an axis whose ticks say 0.02 and 0.05 where plotly's own say 2 and 5."""
    low, high = _ends(values)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 8 * low else (1, 2, 5) if high < 200 * low else (1,)
    ticks = [float(f"{step}e{power}") for power in range(-12, 13) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _ends(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the smallest and the largest number that a logarithmic axis can show."""
    shown = [value for value in values if value is not None and value > 0] or [1.0]
    return min(shown), max(shown)


def experts(profiles: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw usage and saliency of each expert; every layer is there, the first is visible."""
    figure = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=["share of all choices", "saliency"]
    )
    for profile in profiles:
        total = sum(profile["usage"]) or 1
        shares = [count / total for count in profile["usage"]]
        for row, values in enumerate((shares, profile["saliency"]), start=1):
            figure.add_bar(
                row=row,
                col=1,
                x=list(range(len(values))),
                y=values,
                marker={"color": _GREY, "line": {"width": 0}},
                meta=str(profile["layer"]),
                visible=profile is profiles[0],
                hovertemplate="expert %{x}: %{y:.3g}<extra></extra>",
            )
    figure.update_layout(template=_HOUSE, bargap=0.25)
    figure.update_xaxes(title_text="expert", row=2)
    figure.update_yaxes(tickformat=".1%", row=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    return figure
