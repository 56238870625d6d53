"""The tables of benchmarks/layer.py, and the operations that `mergemoe plan` counts for one of its layers."""

from typing import Any

import kept_rows
import numpy as np
import widths

from mergemoe.methods import catalogue
from mergemoe.reconstruction.options import LAYER
from mergemoe.workflow.planning.resources.layer_resources import Layer, solve_held
from mergemoe.workflow.planning.resources.refine_resources import refine_held

# Operations per second that the data sheet of an H100 SXM names, for float32 and for float64 in tensor cores alike
# (NVIDIA H100 Tensor Core GPU data sheet). Nothing was measured on one.
H100 = 67e12


def chosen(method: str) -> dict[str, Any]:
    """Return the options of a method where params.yaml gives none."""
    options = {name: option.default for name, option in catalogue.METHODS[method].options.items()}
    return {name: value for name, value in catalogue.complete(method, options).items() if value is not None}


def counted(row: kept_rows.Row) -> float:
    """Return the operations of a layer with these settings, those in float64 counting twice."""
    used = widths.part(row["width"], row["experts"])
    numbers = 3 * used.hidden * used.inner * used.experts
    layer = Layer(
        experts=used.experts,
        kept=row["kept"],
        width=used.inner,
        kept_width=used.inner,
        largest=-(-used.experts // row["kept"]),
        numbers=numbers,
        bytes=2 * numbers,
        hidden=used.hidden,
        top_k=used.top_k,
        tokens=row["tokens"],
        inside=True,
    )
    refining = {name: option.default for name, option in LAYER.items()} | {"steps": row["steps"]}
    refined = refine_held(layer, refining).flops if row["steps"] else 0
    return solve_held(layer, row["method"], chosen(row["method"])).flops + refined


def name(row: kept_rows.Row) -> str:
    """Return what was measured, in words."""
    refined = f" + {row['steps']} steps" if row["steps"] else ""
    threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
    return f"{row['method']}{refined}, {row['width']} {row['experts']}→{row['kept']}{threads}"


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown."""
    head = [
        "processor",
        "method, layer",
        "tokens",
        "s",
        "counted",
        "float32 products",
        "float64 products",
        "of the rate",
    ]
    head += ["decompositions", "files", "other", "MB"]
    lines: list[list[str]] = []
    for row in rows:
        products, rates = row["products"].values(), row["rates"].values()
        other = row["seconds"] - sum(products) - row["decompositions"] - row["files"]
        cells = [
            row["machine"]["processor"],
            name(row),
            f"{row['tokens']:,}",
            f"{row['seconds']:,.1f}",
            f"{row['counted_seconds']:,.1f}",
            *(f"{seconds:,.1f}" for seconds in products),
            " and ".join(f"{rate:.0%}" for rate in rates),
            *(f"{seconds:,.1f}" for seconds in (row["decompositions"], row["files"], other)),
            f"{row['peak_bytes'] / 1e6:,.0f}",
        ]
        lines.append(cells)
    return kept_rows.markdown(head, lines)


def line(rows: list[kept_rows.Row]) -> str:
    """Return, for what was measured at three or more numbers of tokens, the straight line nearest to the seconds."""
    lines: list[list[str]] = []
    for what in dict.fromkeys(map(name, rows)):
        own = sorted((row for row in rows if name(row) == what), key=lambda row: row["tokens"])
        if len(own) < 3:
            continue
        tokens, seconds = (np.array([row[key] for row in own]) for key in ("tokens", "seconds"))
        slope, start = np.polyfit(tokens, seconds, 1)
        off = np.abs(start + slope * tokens - seconds) / seconds
        memory = " ".join(f"{row['peak_bytes'] / 1e6:,.0f}" for row in own)
        counts = " ".join(f"{count:,}" for count in tokens)
        lines.append([what, counts, f"{start:.1f} + {1000 * slope:.2f} per 1,000 tokens", f"{off.max():.0%}", memory])
    return kept_rows.markdown(["method, layer", "tokens", "seconds", "farthest off", "MB"], lines)


def model(rows: list[kept_rows.Row]) -> str:
    """Return, for whole layers, what all layers of the model take if all are like the one."""
    lines: list[list[str]] = []
    for row in rows:
        width = widths.WIDTHS[row["width"]]
        if row["experts"] < width.experts:
            continue
        operations, seconds = counted(row), row["seconds"]
        cells = [row["machine"]["processor"], name(row), f"{row['tokens']:,}", f"{operations / 1e12:,.0f}"]
        cells += [f"{seconds / 60:,.0f}", f"{seconds / row['counted_seconds']:.2f}"]
        cells += [f"{row['peak_bytes'] / 1e9:.1f}", str(width.layers), f"{width.layers * seconds / 3600:,.1f}"]
        cells.append(f"{width.layers * operations / H100 / 60:,.0f}")
        lines.append(cells)
    head = ["processor", "method, layer", "tokens", "TFLOP counted", "minutes", "of the count", "GB"]
    head += ["layers", "hours of this CPU for all", "minutes of an H100 for all, by the count alone"]
    return kept_rows.markdown(head, lines)
