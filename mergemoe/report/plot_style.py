"""Style of the report's figures: plotly figures of plain lists, so that the same numbers give the same bytes.

One colour and one symbol per method, the same in every picture of a page. Text and grid take their colours
from the page's style, so that they follow it into the dark.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

# Mid tones that stand out on white and on near black. Symbols tell apart what the eye confuses; being one more
# than the colours, they make 72 different marks.
COLOURS = ["#3b78d8", "#d9562b", "#16907f", "#a45fd0", "#b9770e", "#d1478c", "#6b8e23", "#2b95cc"]
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
GREY = "#8a919c"
_FONT = "system-ui, sans-serif"

_AXIS = {"fixedrange": True, "gridcolor": "#ddd", "zeroline": False}
HOUSE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"family": _FONT, "size": 12},
        "margin": {"l": 40, "r": 12, "t": 30, "b": 38},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "title": {"x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"t": 4}, "font": {"size": 13}},
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "dragmode": False,  # a finger on a picture scrolls the page
        "hoverlabel": {
            "align": "left",
            "bgcolor": "#22272e",
            "bordercolor": "#59636e",
            "font": {"family": _FONT, "color": "#ffffff"},
        },
        "xaxis": {**_AXIS, "title": {"standoff": 8, "font": {"size": 12}}},
        "yaxis": {**_AXIS, "automargin": True, "title": {"standoff": 10, "font": {"size": 12}}},
    }
)


class Mark(NamedTuple):
    """How a method is drawn."""

    colour: str
    symbol: str
    glyph: str  # the symbol as text, for legends and tables


def marks(methods: Iterable[str]) -> dict[str, Mark]:
    """Return how each method is drawn."""
    symbols = list(_SYMBOLS.items())
    return {
        method: Mark(COLOURS[i % len(COLOURS)], *symbols[i % len(symbols)])
        for i, method in enumerate(sorted(set(methods)))
    }


def switched(figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """Return figures that the page shows in one place in turn: `views` names them, equal ones are stored once.

    `layout` is what all of them share. The template is left out; the page has it once.
    """
    plain = {key: figure.to_plotly_json() for key, figure in figures.items()}
    texts = {key: json.dumps(figure, sort_keys=True) for key, figure in plain.items()}
    places = {text: place for place, text in enumerate(dict.fromkeys(texts.values()))}
    different = [json.loads(text) for text in places]
    layouts = [figure["layout"] for figure in different]
    shared = {key: value for key, value in layouts[0].items() if all(value == one.get(key) for one in layouts)}
    for figure in different:
        figure["layout"] = {key: value for key, value in figure["layout"].items() if key not in shared}
    shared.pop("template")
    return {"views": {key: places[text] for key, text in texts.items()}, "figures": different, "layout": shared}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers to four digits: more cannot be seen, and thousands of them make a page heavy."""
    return [None if value is None else float(f"{value:.4g}") for value in values]


def layer_axis(layers: Sequence[int]) -> dict[str, Any]:
    """Return a horizontal axis of layers."""
    return {"title_text": "layer", "tickformat": "d", "dtick": 1 if len(layers) <= 16 else None}


def logarithmic(values: Iterable[float | None]) -> dict[str, Any]:
    """Return an axis with ticks such as 0.02 and 0.05; plotly's own would be labelled 2 and 5."""
    low, high = _ends(values)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 8 * low else (1, 2, 5) if high < 200 * low else (1,)
    ticks = [float(f"{step}e{power}") for power in range(-12, 13) for step in steps]
    near = [tick for tick in ticks if low / 10 < tick < high * 10]
    return {"type": "log", "tickvals": near, "ticktext": [f"{tick:,.12g}" for tick in near]}


def logarithmic_range(values: Iterable[float | None]) -> dict[str, Any]:
    """Return a logarithmic axis with fixed ends, for pictures that are to be compared by eye."""
    values = list(values)
    low, high = (math.log10(end) for end in _ends(values))
    return {**logarithmic(values), "range": [low - 0.1, high + 0.1]}


def _ends(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the smallest and the largest number that a logarithmic axis can show."""
    shown = [value for value in values if value is not None and value > 0] or [1.0]
    return min(shown), max(shown)
