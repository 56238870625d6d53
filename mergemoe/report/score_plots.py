"""Figures of the runs' quality: each score over size, and the error of every layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from mergemoe.report.plot_style import COLOURS, GREY, HOUSE, Mark, layer_axis, logarithmic

LOGARITHMIC = {"fidelity/kl", "fidelity/perplexity"}


LOWEST = 320  # of a picture with a row per run, in pixels: as high as the one beside it


class Point(NamedTuple):
    """One number of one run."""

    run: str
    method: str
    share: float  # of the full model's bytes
    value: float
    error: float | None


class Line(NamedTuple):
    """The output errors of one run, one per layer."""

    run: str
    grouping: str
    method: str
    layers: Sequence[int]
    fit: Sequence[float | None]
    heldout: Sequence[float | None]


def lower_envelope(placed: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points (size, error) that no other one of at most their size beats, the smallest first.

    Of equal points it is the first.
    """
    found, least = list[int](), math.inf
    for place in sorted(range(len(placed)), key=lambda place: placed[place]):
        if placed[place][1] < least:
            found.append(place)
            least = placed[place][1]
    return found


def quality(title: str, key: str, full: float | None, points: Sequence[Point], drawn: Mapping[str, Mark]) -> go.Figure:
    """Draw a score over size, with one standard error; the full model is the dashed line.

    Where less is better, a broad line joins the runs that no smaller one beats.
    """
    figure = go.Figure(layout={"template": HOUSE, "title": {"text": title}})
    for point in points:
        mark = drawn[point.method]
        figure.add_scatter(
            x=[point.share],
            y=[point.value],
            error_y={"array": [point.error or 0.0], "visible": point.error is not None, "thickness": 1.5},
            mode="markers",
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 11},
            name=point.run,
            hovertemplate=f"{point.run}<br>%{{y:.4g}} at %{{x:.1%}} of the bytes<extra></extra>",
        )
    if key in LOGARITHMIC:
        best = [points[place] for place in lower_envelope([(point.share, point.value) for point in points])]
        figure.add_scatter(
            x=[point.share for point in best],
            y=[point.value for point in best],
            mode="lines",
            line={"color": GREY, "width": 8},
            opacity=0.3,
            name="the lowest of its size",
            hoverinfo="skip",
        )
    if full is not None:
        figure.add_scatter(
            x=[1.0],
            y=[full],
            mode="markers",
            marker={"color": GREY, "size": 9},
            name="full",
            hovertemplate="full model<br>%{y:.4g}<extra></extra>",
        )
        figure.add_hline(full, line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_xaxes(title_text="share of the full model's bytes", tickformat=".0%", range=[0, 1.06], dtick=0.25)
    if key in LOGARITHMIC:
        figure.update_yaxes(logarithmic([full, *(point.value for point in points)]))
    return figure


def errors(lines: Sequence[Line], drawn: Mapping[str, Mark], axis: Mapping[str, Any], fit: bool) -> go.Figure:
    """Draw the output error of runs over the layers: held out as a line, on the fitted tokens dotted if `fit`.

    Where all are of one method, a colour is a run.
    """
    alone = len({line.method for line in lines}) == 1 < len(lines)
    figure = go.Figure(layout={"template": HOUSE, "margin": {"t": 12}, "showlegend": alone})
    for place, line in enumerate(lines):
        mark = drawn[line.method]
        colour = COLOURS[place % len(COLOURS)] if alone else mark.colour
        look = {"x": list(line.layers), "legendgroup": line.run, "marker": {"symbol": mark.symbol, "size": 8}}
        hover = f"{line.run}<br>layer %{{x}}: %{{y:.3g}} "
        figure.add_scatter(
            y=list(line.heldout),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=line.run,
            hovertemplate=f"{hover}held out<extra></extra>",
            **look,
        )
        if fit:
            figure.add_scatter(
                y=list(line.fit),
                mode="lines",
                line={"color": colour, "width": 2, "dash": "dot"},
                showlegend=False,
                name=f"{line.run}, fit",
                hovertemplate=f"{hover}fitted on<extra></extra>",
                **look,
            )
    figure.update_xaxes(layer_axis(lines[0].layers))
    figure.update_yaxes(axis, title_text="output error")
    return figure


def layer(place: int, lines: Sequence[Line], drawn: Mapping[str, Mark], axis: Mapping[str, Any]) -> go.Figure:
    """Draw the errors of every run at the layer in one place of the lines: what it was fitted on, and held out.

    A run's name stands above its marks, so that a long one takes no room from the picture.
    """
    rows = list(range(len(lines)))
    colours, symbols = zip(*(drawn[line.method][:2] for line in lines), strict=True)
    ends = {"fitted on": [line.fit[place] for line in lines], "held out": [line.heldout[place] for line in lines]}
    names = [
        {"text": line.run, "x": 0, "xref": "paper", "xanchor": "left", "y": row, "yshift": 15, "showarrow": False}
        for row, line in zip(rows, lines, strict=True)
    ]
    height = max(LOWEST, 54 + 40 * len(lines))
    layout = {"height": height, "margin": {"l": 8, "t": 12}, "annotations": names}
    figure = go.Figure(layout={"template": HOUSE, **layout})
    figure.add_scatter(
        x=[end for pair in zip(*ends.values(), strict=True) for end in (*pair, None)],
        y=[row for row in rows for _ in range(3)],
        mode="lines",
        line={"color": GREY, "width": 2},
        hoverinfo="skip",
    )
    for what, values in ends.items():
        filled = what == "held out"
        figure.add_scatter(
            x=values,
            y=rows,
            mode="markers",
            marker={"symbol": [s if filled else f"{s}-open" for s in symbols], "color": list(colours), "size": 10},
            name=what,
            text=[line.run for line in lines],
            hovertemplate=f"%{{text}}<br>%{{x:.3g}} {what}<extra></extra>",
        )
    figure.update_xaxes(axis, title_text="output error")
    figure.update_yaxes(range=[len(lines) - 0.6, -0.8], tickvals=rows, showticklabels=False)
    return figure
