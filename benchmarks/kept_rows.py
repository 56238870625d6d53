"""Rows of a benchmark in benchmarks/results/NAME.json: one that is measured again replaces the old one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "results"


def read(name: str) -> list[Row]:
    """Return the rows of a benchmark, none if it was never run."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def keep(name: str, settings: Row, figures: Row) -> list[Row]:
    """Write the figures of these settings in the place of older ones; return all rows."""
    rows = [row for row in read(name) if any(row.get(key) != settings[key] for key in settings)]
    rows.append(settings | figures)
    (FOLDER / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    made = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([made[0], f"|{'---|' * len(head)}", *made[1:]])
