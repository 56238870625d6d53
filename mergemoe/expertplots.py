"""Pictures of experts: how much each one is used, who became one with whom, and whether the tokens were enough."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mergemoe.plots import COLOURS, GREY, HOUSE, layer_axis, logarithmic, rounded

_BAND = "rgba(128, 136, 148, 0.13)"


class _Bar(NamedTuple):
    """One expert of a map."""

    expert: int
    label: str
    colour: str
    filled: bool
    told: str


class _Dot(NamedTuple):
    """One group of a picture of tokens."""

    layer: int
    place: float
    centre: int
    tokens: int
    enough: bool


def experts(profile: Mapping[str, Any], grouping: Mapping[str, Any] | None = None) -> go.Figure:
    """Draw usage and saliency of each expert of one layer.

    With a grouping, experts that become one stand together in one colour on one band, the most used of them first
    and in bold; groups come by usage, the pruned last and hollow. Who stays alone is grey.
    """
    total = sum(profile["usage"]) or 1
    shares = [count / total for count in profile["usage"]]
    bars = _grouped(grouping, shares) if grouping else [_alone(e) for e in range(len(shares))]
    rows = list(range(len(bars)))
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=["share of all choices", "saliency"]
    )
    for col, values in enumerate((shares, profile["saliency"]), start=1):
        figure.add_bar(
            row=1,
            col=col,
            orientation="h",
            x=rounded(values[bar.expert] for bar in bars),
            y=rows,
            marker={
                "color": [bar.colour if bar.filled else "rgba(0,0,0,0)" for bar in bars],
                "line": {"color": [bar.colour for bar in bars], "width": [0 if bar.filled else 1 for bar in bars]},
            },
            customdata=[bar.told for bar in bars],
            hovertemplate="%{customdata}<br>%{x:.3g}<extra></extra>",
        )
    for first, last in _bands(grouping)[::2]:
        figure.add_hrect(first - 0.5, last + 0.5, fillcolor=_BAND, line_width=0, layer="below")
    figure.update_layout(template=HOUSE, bargap=0.3, height=54 + 17 * len(bars), margin={"b": 24})
    figure.update_xaxes(tickformat=".1~%", nticks=5, col=1)
    figure.update_xaxes(nticks=5, col=2)
    figure.update_yaxes(tickvals=rows, ticktext=[bar.label for bar in bars], range=[len(bars) - 0.5, -0.5])
    figure.update_annotations(font={"size": 12})
    return figure


def _alone(expert: int) -> _Bar:
    return _Bar(expert, str(expert), GREY, True, f"expert {expert}")


def _ordered(grouping: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the groups, the most used first."""
    return sorted(grouping["groups"], key=lambda group: (-group["share"], group["centre"]))


def _grouped(grouping: Mapping[str, Any], shares: Sequence[float]) -> list[_Bar]:
    bars, merged = [], 0
    for group in _ordered(grouping):
        members = sorted(group["members"], key=lambda expert: (-shares[expert], expert))
        if len(members) == 1:
            bars.append(_alone(members[0])._replace(told=f"expert {members[0]}, kept as it is"))
            continue
        colour = COLOURS[merged % len(COLOURS)]
        told = (
            f"one of experts {', '.join(map(str, members))}<br>{group['share']:.1%} of all choices together<br>expert "
        )
        ties = ["┐", *"┤" * (len(members) - 2), "┘"]
        for expert, tie in zip(members, ties, strict=True):
            number = f"<b>{expert}</b>" if expert == group["centre"] else expert
            label = f'{number} <span style="color: {colour}">{tie}</span>'
            bars.append(_Bar(expert, label, colour, True, f"{told}{expert}"))
        merged += 1
    return bars + [_Bar(e, f"<i>{e}</i>", GREY, False, f"expert {e}, pruned") for e in grouping["pruned"]]


def _bands(grouping: Mapping[str, Any] | None) -> list[tuple[int, int]]:
    """Return the first and the last row of each group of several."""
    bands, row = [], 0
    for group in _ordered(grouping) if grouping else []:
        if group["size"] > 1:
            bands.append((row, row + group["size"] - 1))
        row += group["size"]
    return bands


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
    counts = [count for trace in figure.data for count in trace.y]
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
