"""Missing scores and runs of a study whose jobs did not all finish, with the last words of their logs.

Of a run without its model, only the first missing artifact on the way to it is named.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mergemoe.artifacts import paths, store
from mergemoe.artifacts.paths import below
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import STAGES
from mergemoe.report.metrics import There

RULES = {"fidelity": "fidelity", "generation": "generate"}  # these are not tasks of lm-eval and have their own rules
BAR = re.compile(r"\d+%\|")  # of a progress bar
MADE = "made once, and not there now"
DONE = "CPU time: "  # how a stage that came to its end closes its log


class Missing(NamedTuple):
    """A missing score or artifact."""

    model: str
    subject: str  # full, or a run by its name
    missing: str  # a task, or the stage that did not end
    said: str  # the last words of its log


def find_missing(
    results: Path, logs: Path, runs: Sequence[Run], tasks: Sequence[str], there: There = Path.exists
) -> list[Missing]:
    """Return everything that a study lacks, in the order of its runs.

    Args:
        results: the folder of all artifacts.
        logs: the folder of Snakemake's logs.
        runs: the runs.
        tasks: names of what every model is scored on.
        there: tells whether an artifact is there, and is what it should be.
    """
    found = list[Missing]()
    for model in dict.fromkeys(run.model for run in runs):
        found += _of(results, logs, {"model": model}, "full", tasks, there)
        for run in (run for run in runs if run.model == model):
            found += _of(results, logs, run.wildcards, run.subject, tasks, there)
    return found


def assembled(results: Path, run: Run, there: There = Path.exists) -> bool:
    """Tell whether a run has its model, and so all that comes before it."""
    return there(below(results, STAGES["assemble"].finished, **run.wildcards))


def _of(
    results: Path, logs: Path, chosen: Mapping[str, str], subject: str, tasks: Sequence[str], there: There
) -> Iterator[Missing]:
    model = chosen["model"]
    for stage, names in _way(results, chosen):
        artifact, told = below(results, stage.finished, **names), _log(logs, stage, names)
        needed = not stage.optional or stage.name in chosen
        if not there(artifact) and (told.is_file() or needed):
            job = told.relative_to(logs / stage.name).with_suffix("")
            yield Missing(model, subject, f"{stage.name} {job}", _said(artifact, told))
            return
    for task in tasks:
        names = {"model": model, "subject": subject, "task": task}
        if not there(score := below(results, paths.SCORE, **names)):
            told = _log(logs, STAGES[RULES.get(task, "evaluate")], names)
            reference = STAGES["reference"]
            if task in RULES and not told.is_file() and not below(results, reference.output, **names).exists():
                told = _log(logs, reference, names)
            yield Missing(model, subject, task, _said(score, told))


def _way(results: Path, chosen: Mapping[str, str]) -> Iterator[tuple[Stage, Mapping[str, str]]]:
    """Yield the stages and wildcards of what must be there before a subject can be scored, in the data's order."""
    for stage in STAGES.values():
        if set(stage.wildcards) <= {*chosen, "layer"} and stage.name != "reference" and stage.wildcards:
            if "layer" not in stage.wildcards:
                yield stage, chosen
                continue
            layout = store.read_json(below(results, paths.LAYOUT, **chosen))
            for layer in layout["layers"]:
                yield stage, {**chosen, "layer": paths.layer_name(layer["layer"])}


def _log(logs: Path, stage: Stage, names: Mapping[str, str]) -> Path:
    return logs / stage.log.removeprefix("logs/").format(**names)


def _said(artifact: Path, log: Path) -> str:
    said = last_words(log)
    if not artifact.exists():
        return said
    old = "the artifact was made with other parameters, inputs or code"
    return old if said.startswith(MADE) else f"{old}; {said}"


def last_words(log: Path) -> str:
    """Return the last line of a log: its error, or a text that tells how far the job came."""
    if not log.is_file():
        return "not run"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if lines and lines[-1].startswith(DONE):
        return MADE
    plain = [line for line in lines if not BAR.search(line)]
    if any(line.startswith("Traceback") for line in plain):
        return plain[-1]
    return f"killed, or running{f'; its log ends with: {lines[-1]}' if lines else '; its log is empty'}"
