"""Tables of the plotted numbers as CSV, for DVC's plots, spreadsheets and other tools."""

import csv
import io
from collections.abc import Iterable, Sequence

from mergemoe.report.study import ModelResults


def quality(models: Sequence[ModelResults]) -> str:
    """Return a row per run, and one per full model: its share of the bytes and every score."""
    rows = []
    for model in models:
        subjects = {"full": ("full", model.full), **{run.name: (run.method, run.scores) for run in model.runs}}
        for name, (method, scores) in subjects.items():
            share = scores["cost/bytes"] / model.full["cost/bytes"]
            rows.append({"model": model.name, "run": name, "method": method, "share": share, **scores})
    return _csv(rows, ["model", "run", "method", "share"])


def errors(models: Sequence[ModelResults]) -> str:
    """Return a row per run and layer: its relative squared error on fitted and on held-out tokens."""
    rows = [
        {"model": model.name, "run": run.name, "layer": layer["layer"], **error}
        for model in models
        for run in model.runs
        for layer, error in zip(run.solved, run.errors, strict=True)
    ]
    return _csv(rows, ["model", "run", "layer"])


def _csv(rows: Sequence[dict[str, object]], first: Iterable[str]) -> str:
    """Return the text of a table; missing values and null are empty."""
    columns = dict.fromkeys([*first, *sorted({key for row in rows for key in row})])
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
