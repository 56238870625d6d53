"""Compare the numbers of metrics.json with those that a commit has."""

from pathlib import Path
from typing import Any

from mergemoe.artifacts.paths import METRICS
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, kept_files


def compare_scores(root: Path, commit: str, tree: Path) -> dict[str, Any]:
    """Return the numbers of metrics.json that differ from the commit's, with their standard errors."""
    committed = {}
    if commands.run_program(root, "git", "ls-tree", commit, METRICS):
        text, name = commands.run_program(root, "git", "show", f"{commit}:{METRICS}"), f"{METRICS} of {commit[:12]}"
        fix = "Commit the file that the report wrote: `mergemoe restore` of the commit before brings it back"
        committed = _flat(kept_files.parse_kept(text, name, kept_files.Metrics, fix))
    try:
        found = _flat(kept_files.read_kept(tree, METRICS, kept_files.Metrics))
    except UserError:  # it is among the faults
        return {"numbers": 0, "differ": {}}
    keys = sorted(committed.keys() | found.keys())
    differ = {key: [committed.get(key), found.get(key), committed.get(f"{key}_stderr")] for key in keys}
    return {"numbers": len(keys), "differ": {key: row for key, row in differ.items() if row[0] != row[1]}}


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    models = {f"{model}/full": one["full"] for model, one in metrics.items()}
    models |= {f"{model}/{run}": scores for model, one in metrics.items() for run, scores in one["runs"].items()}
    return {f"{model} {key}": value for model, scores in models.items() for key, value in scores.items()}
