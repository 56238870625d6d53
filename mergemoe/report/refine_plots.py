"""Figure of a refine: the error of each layer on held-out tokens, over the steps."""

from collections.abc import Sequence

import plotly.graph_objects as go

from mergemoe.moe.refine_records import LayerRefine
from mergemoe.report.plot_style import COLOURS, HOUSE, logarithmic, rounded

LEGEND = 16  # layers that a legend names; of more, a finger or the mouse tells which one it is


def descent(layers: Sequence[LayerRefine]) -> go.Figure:
    """Draw a line per layer: an open mark where the solve left it, a full one where its state was kept."""
    figure = go.Figure(layout={"template": HOUSE, "margin": {"t": 12}, "showlegend": len(layers) <= LEGEND})
    for place, layer in enumerate(layers):
        steps = [one["step"] for one in layer["history"]]
        figure.add_scatter(
            x=steps,
            y=rounded(one["heldout"] for one in layer["history"]),
            mode="lines+markers",
            line={"color": COLOURS[place % len(COLOURS)], "width": 2},
            marker={
                "symbol": ["circle-open" if step == 0 < layer["best_step"] else "circle" for step in steps],
                "opacity": 1,
                "size": [9 if step in (0, layer["best_step"]) else 0 for step in steps],
            },
            cliponaxis=False,  # the start lies on the axis
            name=f"layer {layer['layer']}",
            hovertemplate=f"layer {layer['layer']}, step %{{x}}: %{{y:.3g}} held out<extra></extra>",
        )
    figure.update_xaxes(title_text="step", rangemode="tozero")
    shown = [one["heldout"] for layer in layers for one in layer["history"]]
    figure.update_yaxes(logarithmic(shown), title_text="output error, held out")
    return figure
