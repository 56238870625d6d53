"""envs/summaries.json: summaries of the recorded results (summary.py). It is in git, not in an artifact.

{"results": {path: {part: ...}}}
"""

import json
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic
from mergemoe.progress import track
from mergemoe.workflow.comparison import summary
from mergemoe.workflow.ledger import kept_files, verify_results

FILE = Path("envs", "summaries.json")


def read_summaries(root: Path) -> dict[str, Any]:
    """Return {path: summary} of the recorded results; nothing if there is no file, as before this version.

    Raises:
        UserError: if the file was cut or edited.
    """
    if not (root / FILE).exists():
        return {}
    return kept_files.read_kept(root, str(FILE), kept_files.Summaries, "; `mergemoe record` writes it")["results"]


def write_summaries(root: Path) -> None:
    """Write the summaries of the results that are there, a line each, so that git shows which changed."""
    paths = [path for path in verify_results.result_files(root) if summary.has_summary(path)]
    found = {path: summary.summarize(root / path) for path in track(paths, "results summarized")}
    lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(found[path], sort_keys=True)}" for path in paths)
    with atomic.atomic(root / FILE) as file:
        file.write_text(f'{{"results": {{\n{lines}\n}}}}\n', encoding="utf-8")
