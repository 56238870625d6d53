"""The numbers behind the pictures as CSV, for DVC's plots, spreadsheets and whoever draws them otherwise."""

import csv
import io
from collections.abc import Iterable, Sequence

from mergemoe.report.study import Model


def quality(models: Sequence[Model]) -> str:
    """Return a row per run, and one per full model: its share of the bytes and every score."""
    rows = []
    for model in models:
        subjects = {"full": ("full", model.full), **{run.name: (run.method, run.scores) for run in model.runs}}
        for name, (method, scores) in subjects.items():
            share = scores["cost/bytes"] / model.full["cost/bytes"]
            rows.append({"model": model.name, "run": name, "method": method, "share": share, **scores})
    return _csv(rows, ["model", "run", "method", "share"])


def errors(models: Sequence[Model]) -> str:
    """Return a row per run and layer: its relative squared error on fitted and on held-out tokens."""
    rows = [
        {"model": model.name, "run": run.name, "layer": layer["layer"], **layer["output_error"]}
        for model in models
        for run in model.runs
        for layer in run.solved
    ]
    return _csv(rows, ["model", "run", "layer"])


def _csv(rows: Sequence[dict[str, object]], first: Iterable[str]) -> str:
    """Return the text of a table; what a row lacks is empty, and so is null."""
    columns = dict.fromkeys([*first, *sorted({key for row in rows for key in row})])
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
