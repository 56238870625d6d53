"""All numbers of a study in one dictionary, for results/metrics.json, the page and the cards.

{model: {"full": {"<task>/<score>": x, "cost/<what>": x}, "runs": {"<calibrate>/<cluster>/<solution>": {...}}}}
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergemoe import errors
from mergemoe.artifacts import paths, store
from mergemoe.artifacts.paths import below
from mergemoe.artifacts.reading import reading
from mergemoe.artifacts.run import Run
from mergemoe.errors import damaged_artifact
from mergemoe.text_table import aligned_table, markdown_table

Scores = dict[str, float]
Metrics = dict[str, dict[str, Any]]
There = Callable[[Path], bool]

FIDELITY = """\
`fidelity` compares with the full model on held-out text: mean KL(full || this) in nats per token, share of tokens
where both put the same one first, mean relative squared error of the compressed layers."""
GENERATION = """\
`generation` continues held-out prompts greedily: share of continuations that end in a loop, mean share of
distinct words (1), pairs (2) and triples (3) of tokens in one, mean length, perplexity under the full model."""
SAME_SIZE = 0.01  # runs whose bytes are this close, as a share of the smallest, count as one size


def gather_scores(
    results: str | Path, runs: Iterable[Run], tasks: Sequence[str], there: There | None = None
) -> Metrics:
    """Return the scores and counted costs of every run and of the models that were compressed.

    The costs are those that `layout` and `assemble` counted, sealed with the sha256 of the files that they counted.

    Args:
        results: the folder of all artifacts.
        runs: the runs.
        tasks: names of the tasks; `fidelity` is one of them if it was measured.
        there: tells which scores exist; the others are left out. Without it, all must exist.

    Raises:
        ArtifactError: if a file is missing, damaged, or holds a score that is not a number.
    """
    results, metrics = Path(results), {}
    for run in runs:
        model, subject = run.model, run.subject
        if model not in metrics:
            cost = _cost(below(results, paths.LAYOUT, model=model))
            scores = score_paths(results, model, "full", tasks)
            metrics[model] = {"full": _numbers(scores, cost, there), "runs": {}}
        folder = paths.SUBJECT_MODEL.format(model=model, subject=subject)
        cost = _cost(below(results, paths.provenance_of(folder)))
        metrics[model]["runs"][subject] = _numbers(score_paths(results, model, subject, tasks), cost, there)
    return metrics


def score_paths(results: Path, model: str, subject: str, tasks: Sequence[str]) -> list[Path]:
    """Return the score files of the full model or of a run, one per task."""
    return [below(results, paths.SCORE, model=model, subject=subject, task=task) for task in tasks]


def read_artifact(path: Path) -> Any:
    """Read a JSON artifact that the report cannot do without."""
    if not path.is_file():
        raise damaged_artifact(path, "is missing")
    return store.read_json(path)


def read_metrics(results: Path) -> Metrics:
    """Return the numbers of metrics.json, if they are those that the report wrote.

    Raises:
        ArtifactError: if the file is missing or has changed.
    """
    path = below(results, paths.METRICS)
    check_reported(results, path)
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def check_reported(results: Path, path: Path) -> None:
    """Check that a file is the one that the report wrote.

    Raises:
        ArtifactError: if it is missing, has changed, or the report wrote none of this name.
    """
    record = below(results, paths.REPORTED)
    name, files = os.path.relpath(path, record.parent), read_artifact(record).get("files", {})
    if name not in files:
        raise errors.damaged_artifact(record, f"does not list {path}")
    store.check_files(record.parent, {name: files[name]})


def _cost(path: Path) -> Mapping[str, float]:
    if "cost" not in (made := read_artifact(path)):
        raise errors.damaged_artifact(path, "has no cost, so another version wrote it")
    return made["cost"]


def _numbers(scores: Sequence[Path], cost: Mapping[str, float], there: There | None) -> Scores:
    numbers = {f"cost/{name}": value for name, value in cost.items()}
    for path in (path for path in scores if there is None or there(path)):
        for name, value in read_artifact(path)["scores"].items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise errors.damaged_artifact(path, f"gives {value!r} for {name}, which is no number")
            numbers[f"{path.stem}/{name}"] = value
    return dict(sorted(numbers.items()))


def metrics_text(metrics: Metrics) -> str:
    """Return the text of results/metrics.json."""
    return json.dumps(metrics, sort_keys=True, indent=1, allow_nan=False) + "\n"


def columns(metrics: Metrics) -> list[str]:
    """Return the scores worth a column, fidelity first: of a task its `acc`, or all scores if it has none.

    Generation has a table of its own: its figures are good or bad beside the full model's alone.
    """
    models = [scores for model in metrics.values() for scores in (model["full"], *model["runs"].values())]
    keys = {key for scores in models for key in scores if not key.endswith(("_stderr", "/output_error"))}
    keys -= generation(keys)
    chosen = [key for key in keys if key.endswith("/acc") or f"{key.partition('/')[0]}/acc" not in keys]
    return sorted(
        (key for key in chosen if not key.startswith("cost/")), key=lambda key: (not key.startswith("fidelity/"), key)
    )


def generation(keys: Iterable[str]) -> set[str]:
    """Return the scores of generation, without standard errors."""
    return {key for key in keys if key.startswith("generation/") and not key.endswith("_stderr")}


def winner(model: Metrics) -> str | None:
    """Return the run of a model with the lowest KL among the smallest, or None if no KL was measured.

    Smallest: bytes within `SAME_SIZE` of the smallest run's. The text that the KL is measured on chooses
    here, so the winner's own KL is a little optimistic; equal ones are told apart by name.
    """
    runs = {name: scores for name, scores in model["runs"].items() if "fidelity/kl" in scores}
    if not runs:
        return None
    limit = (1 + SAME_SIZE) * min(scores["cost/bytes"] for scores in runs.values())
    small = [name for name, scores in runs.items() if scores["cost/bytes"] <= limit]
    return min(small, key=lambda name: (runs[name]["fidelity/kl"], name))


def shown(value: float | None, error: float | None = None) -> str:
    """Return a number as text: three digits, and its standard error if there is one."""
    if value is None:
        return "–"
    text = f"{value:#.3g}".rstrip(".") if 0 < abs(value) < 999.5 else f"{value:,.0f}"
    return text if error is None else f"{text} ± {f'{error:#.2g}'.rstrip('.')}"


def measured(task: str, artifact: Mapping[str, Any]) -> str:
    """Return a description of the task and the number of samples that scores were measured on."""
    version = f"version {artifact['version']}, " if artifact.get("version") is not None else ""
    shots = f"{'/'.join(map(str, artifact['shots']))}-shot, " if any(artifact.get("shots", ())) else ""
    note = f"; {artifact['note']}" if artifact.get("note") else ""
    return f"{task} ({version}{shots}{artifact['samples']:,} {'tokens' if task == 'fidelity' else 'samples'}{note})"


def scores_table(metrics: Metrics) -> str:
    """Return the main numbers as text for a terminal: a line per model, one per run below it."""
    names = columns(metrics)
    rows = [["", "MB", "share", *(name.replace("fidelity/", "") for name in names)]]
    for model, numbers in metrics.items():
        full = numbers["full"]
        for name, scores in {model: full, **{f"  {name}": run for name, run in numbers["runs"].items()}}.items():
            size = [shown(scores["cost/bytes"] / 1e6), f"{scores['cost/bytes'] / full['cost/bytes']:.0%}"]
            rows.append([name, *size, *(shown(scores.get(key), scores.get(f"{key}_stderr")) for key in names)])
    return aligned_table(rows, "<>") + "\n"


def scores_markdown(scores: Scores, base: Scores, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores of a run beside the full model's, as a section of its card.

    Args:
        scores: of the run, as in metrics.json.
        base: of the full model.
        tasks: {task: its artifact}.
    """
    both = {"": {"full": base, "runs": {"": scores}}}
    keys = [key for key in [*columns(both), "fidelity/output_error", *sorted(generation(scores))] if key in scores]
    rows = [[key, *(shown(one.get(key), one.get(f"{key}_stderr")) for one in (base, scores))] for key in keys]
    explained = [FIDELITY, *([GENERATION] if "generation" in tasks else [])]
    costs = [[key, f"{base[key]:,.0f}", f"{scores[key]:,.0f}"] for key in scores if key.startswith("cost/")]
    return f"""\
## Scores

{markdown_table(["", "full model", "this model"], rows + costs)}

± is one standard error. Measured on {", ".join(measured(*task) for task in tasks.items())}.

{" ".join(explained)}
"""
