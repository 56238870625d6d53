"""What a study lacks, where not every job came to its end: which scores and runs, and what their logs say.

A run without its model has one hole: the first artifact that is missing on the way to it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mergemoe.artifacts import store
from mergemoe.report.metrics import There

RULES = {"fidelity": "fidelity", "generation": "generate"}  # what is no task of lm-eval has a rule of its own
OPTIONAL = {"convert", "curve", "budget"}  # not every run has them
BAR = re.compile(r"\d+%\|")  # of a progress bar
MADE = "made once, and not there now"
DONE = "CPU time: "  # how a stage that came to its end closes its log


class Hole(NamedTuple):
    """Something that is not there."""

    model: str
    subject: str  # full, or calibrate/cluster/solve
    missing: str  # a task, or the stage that did not end
    said: str  # the last words of its log


def find(
    results: Path, logs: Path, runs: Sequence[Sequence[str]], tasks: Sequence[str], there: There = Path.exists
) -> list[Hole]:
    """Return every hole of a study, in the order of its runs.

    Args:
        results: the folder of all artifacts.
        logs: the folder of Snakemake's logs.
        runs: [model, calibrate, cluster, solve] of each run.
        tasks: names of what every model is scored on.
        there: tells whether an artifact is there, and is what it should be.
    """
    subjects = dict.fromkeys((run[0], subject) for run in runs for subject in ("full", "/".join(run[1:])))
    return [hole for model, subject in subjects for hole in _of(results, logs, model, subject, tasks, there)]


def assembled(results: Path, run: Sequence[str], there: There = Path.exists) -> bool:
    """Tell whether a run has its model, and so all that comes before it."""
    return there(results.joinpath("models", *run) / "provenance.json")


def _of(results: Path, logs: Path, model: str, subject: str, tasks: Sequence[str], there: There) -> Iterator[Hole]:
    for stage, artifact, log in _way(results, model, subject):
        told = logs / stage / log
        if not there(results / artifact) and (told.is_file() or stage not in OPTIONAL):
            yield Hole(model, subject, f"{stage} {log.removesuffix('.log')}", _said(results / artifact, told))
            return
    for task in tasks:
        if not there(score := results / "scores" / model / subject / f"{task}.json"):
            name = f"{subject}.log" if task in RULES else f"{subject}/{task}.log"
            told = logs / RULES.get(task, "evaluate") / model / name
            reference = results / "scores" / model / "full" / "reference"
            if task in RULES and not told.is_file() and not reference.exists():
                told = logs / "reference" / f"{model}.log"
            yield Hole(model, subject, task, _said(score, told))


def _way(results: Path, model: str, subject: str) -> Iterator[tuple[str, str, str]]:
    """Yield stage, artifact and log of what must be there before a subject can be scored, in the data's order."""
    yield "convert", f"convert/{model}", f"{model}.log"
    yield "layout", f"layout/{model}.json", f"{model}.log"
    if subject == "full":
        return
    calibrate, cluster, solve = subject.split("/")
    drawn, grouped, solved = (f"{model}/{calibrate}", f"{model}/{calibrate}/{cluster}", f"{model}/{subject}")
    layers = [f"layer_{one['layer']:03d}" for one in store.read_json(results / "layout" / f"{model}.json")["layers"]]
    yield "calibrate", f"calibrate/{drawn}/tokens.safetensors", f"{drawn}.log"
    yield "capture", f"capture/{drawn}", f"{drawn}.log"
    for stage, folder in {"profile": drawn, "curve": grouped}.items():
        yield from ((stage, f"{stage}/{folder}/{layer}.json", f"{folder}/{layer}.log") for layer in layers)
    yield "budget", f"budget/{grouped}.json", f"{grouped}.log"
    for stage, folder in {"cluster": grouped, "solve": solved}.items():
        yield from ((stage, f"{stage}/{folder}/{layer}.json", f"{folder}/{layer}.log") for layer in layers)
    yield "assemble", f"models/{solved}/provenance.json", f"{solved}.log"


def _said(artifact: Path, log: Path) -> str:
    said = last_words(log)
    if not artifact.exists():
        return said
    old = "what is there was made with other parameters, inputs or code"
    return old if said.startswith(MADE) else f"{old}; {said}"


def last_words(log: Path) -> str:
    """Return what a log ends with: the error, or that there is none."""
    if not log.is_file():
        return "not run"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if lines and lines[-1].startswith(DONE):
        return MADE
    plain = [line for line in lines if not BAR.search(line)]
    if any(line.startswith("Traceback") for line in plain):
        return plain[-1]
    return f"killed, or running{f'; its log ends with: {lines[-1]}' if lines else '; its log is empty'}"
