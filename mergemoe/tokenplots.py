"""The picture of a calibration: the tokens of every group over the layers, beside those that a fit needs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from mergemoe.plots import COLOURS, GREY, HOUSE, layer_axis, logarithmic


class _Dot(NamedTuple):
    """One group of a picture of tokens."""

    layer: int
    place: float
    centre: int
    tokens: int
    enough: bool


def tokens(layers: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the calibration tokens of every group over the layers, beside the numbers that a least squares needs."""
    numbers = [layer["layer"] for layer in layers]
    figure = go.Figure(layout={"template": HOUSE, "margin": {"t": 12}})
    dots = [dot for layer in layers for dot in _dots(layer)]
    for enough, colour in ((True, COLOURS[2]), (False, COLOURS[1])):
        shown = [dot for dot in dots if dot.enough is enough]
        figure.add_scatter(
            x=[dot.place for dot in shown],
            y=[dot.tokens for dot in shown],
            mode="markers",
            marker={"size": 6, "color": colour},
            customdata=[[dot.layer, dot.centre] for dot in shown],
            hovertemplate="layer %{customdata[0]}, group of expert %{customdata[1]}<br>%{y:,} tokens<extra></extra>",
        )
    lines = {
        "all fitted tokens": ([layer["fit_tokens"] for layer in layers], COLOURS[0], "solid"),
        "needed for all groups at once": ([layer["needed_tokens"]["joint"] for layer in layers], COLOURS[4], "dash"),
        "needed for one group": ([layer["needed_tokens"]["group"] for layer in layers], GREY, "dot"),
    }
    for name, (values, colour, dash) in lines.items():
        figure.add_scatter(
            x=[numbers[0] - 0.4, *numbers, numbers[-1] + 0.4],
            y=[values[0], *values, values[-1]],
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash, "shape": "hvh"},
            name=name,
            hovertemplate=f"{name}<br>%{{y:,}} tokens<extra></extra>",
        )
    counts = [dot.tokens for dot in dots] + [count for values, *_ in lines.values() for count in values]
    figure.update_xaxes(layer_axis(numbers))
    figure.update_yaxes(logarithmic(counts), title_text="tokens")
    return figure


def _dots(layer: Mapping[str, Any]) -> list[_Dot]:
    """Return the groups of a layer, side by side around its number, those with the most tokens first."""
    groups = sorted(layer["groups"], key=lambda group: (-group["routed_tokens"], group["centre"]))
    need = layer["needed_tokens"]["group"]
    return [
        _Dot(
            layer=layer["layer"],
            place=round(layer["layer"] + 0.6 * ((place + 0.5) / len(groups) - 0.5), 3),
            centre=group["centre"],
            tokens=group["routed_tokens"],
            enough=group["routed_tokens"] > need,
        )
        for place, group in enumerate(groups)
    ]
