"""Figure of a calibration: the tokens of every group over the layers, beside the tokens that a fit needs."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from mergemoe.moe.records import LayerGrouping
from mergemoe.report.plot_style import COLOURS, GREY, HOUSE, layer_axis, logarithmic

# How each number of tokens is drawn, and its sign in the legend.
GROUP, FEW = "tokens of a group", "too few for a group's own weights"
FITTED, JOINT, OWN = "all fitted tokens", "needed for all groups at once", "needed for one group"
COLOUR = {GROUP: COLOURS[2], FEW: COLOURS[1], FITTED: COLOURS[0], JOINT: COLOURS[4], OWN: GREY}
SIGN = {GROUP: "●", FEW: "●", FITTED: "━", JOINT: "╍", OWN: "┄"}
_DASH = {FITTED: "solid", JOINT: "dash", OWN: "dot"}


class _Dot(NamedTuple):
    """One group of a picture of tokens."""

    layer: int
    place: float
    centre: int
    tokens: int
    enough: bool


def tokens(layers: Sequence[LayerGrouping]) -> go.Figure:
    """Draw the calibration tokens of every group over the layers, beside the numbers that a least squares needs."""
    numbers = [layer["layer"] for layer in layers]
    figure = go.Figure(layout={"template": HOUSE, "margin": {"t": 12}})
    dots = [dot for layer in layers for dot in _dots(layer)]
    for name in (GROUP, FEW):
        shown = [dot for dot in dots if dot.enough is (name == GROUP)]
        figure.add_scatter(
            x=[dot.place for dot in shown],
            y=[dot.tokens for dot in shown],
            mode="markers",
            marker={"size": 6, "color": COLOUR[name]},
            name=name,
            customdata=[[dot.layer, dot.centre] for dot in shown],
            hovertemplate="layer %{customdata[0]}, group of expert %{customdata[1]}<br>%{y:,} tokens<extra></extra>",
        )
    lines = {
        FITTED: [layer["fit_tokens"] for layer in layers],
        JOINT: [layer["needed_tokens"]["joint"] for layer in layers],
        OWN: [layer["needed_tokens"]["group"] for layer in layers],
    }
    for name, values in lines.items():
        figure.add_scatter(
            x=[numbers[0] - 0.4, *numbers, numbers[-1] + 0.4],
            y=[values[0], *values, values[-1]],
            mode="lines",
            line={"color": COLOUR[name], "width": 2, "dash": _DASH[name], "shape": "hvh"},
            name=name,
            hovertemplate=f"{name}<br>%{{y:,}} tokens<extra></extra>",
        )
    counts = [dot.tokens for dot in dots] + [count for values in lines.values() for count in values]
    figure.update_xaxes(layer_axis(numbers))
    figure.update_yaxes(logarithmic(counts), title_text="tokens")
    return figure


def _dots(layer: LayerGrouping) -> list[_Dot]:
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
