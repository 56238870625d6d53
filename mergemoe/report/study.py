"""What the report shows beside the scores: the artifacts of each model and of each run made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergemoe.artifacts import provenance
from mergemoe.compressed import checkpoint_card
from mergemoe.report.metrics import Metrics, Scores, There, columns, read, winner


@dataclass(frozen=True)
class Run:
    """One compressed model."""

    name: str  # calibrate/cluster/solve
    folder: str
    parameters: Mapping[str, Mapping[str, Any]]  # as checkpoint_card.unscored_card takes them
    code: Mapping[str, str]  # stage -> digest
    files: Mapping[str, str]  # of the checkpoint: name -> sha256
    stock: bool  # whether transformers loads it without code of ours
    solved: Sequence[Mapping[str, Any]]  # one per layer
    scores: Scores
    texts: Sequence[Mapping[str, str]]  # continuations as text, where they were made

    @property
    def grouping(self) -> str:
        """The choices that grouped the experts: calibrate/cluster."""
        return self.name.rpartition("/")[0]

    @property
    def method(self) -> str:
        """The method that merged the experts."""
        return self.parameters["solve"]["method"]  # the record of an untouched layer has no method


@dataclass(frozen=True)
class Model:
    """One model, with all that was made of it."""

    name: str
    layout: Mapping[str, Any]
    full: Scores
    columns: Sequence[str]
    tasks: Mapping[str, Mapping[str, Any]]  # version and samples of each
    profiles: Mapping[str, Sequence[Mapping[str, Any]]]  # calibrate -> one per layer
    groupings: Mapping[str, Sequence[Mapping[str, Any]]]  # calibrate/cluster -> one per layer
    texts: Sequence[Mapping[str, str]]  # the full model's continuations, where they were made
    runs: Sequence[Run]
    winner: Run | None

    @property
    def layers(self) -> list[str]:
        """The file names of the layers' artifacts."""
        return _files(self.layout)


def load(
    results: Path, runs: Sequence[Sequence[str]], tasks: Sequence[str], metrics: Metrics, there: There | None = None
) -> list[Model]:
    """Read the artifacts of every model in `metrics`; tasks of which `there` says that a score is not are left out.

    Raises:
        ArtifactError: where a file is missing or damaged.
    """
    models = []
    for name in metrics:
        own = [run[1:] for run in runs if run[0] == name]
        subjects = [results / "scores" / name / "full", *(results.joinpath("scores", name, *run) for run in own)]
        seen = [task for task in tasks if there is None or all(there(s / f"{task}.json") for s in subjects)]
        models.append(_model(results, name, own, seen, metrics))
    return models


def _model(results: Path, name: str, runs: list[Sequence[str]], tasks: Sequence[str], metrics: Metrics) -> Model:
    layout = read(results / "layout" / f"{name}.json")
    loaded = [_run(results, name, "/".join(run), layout, tasks, metrics) for run in runs]
    best = winner(metrics[name])
    return Model(
        name=name,
        layout=layout,
        full=metrics[name]["full"],
        columns=columns({name: metrics[name]}),
        tasks={task: read(results.joinpath("scores", name, *runs[0], f"{task}.json")) for task in tasks},
        profiles={
            calibrate: [read(results / "profile" / name / calibrate / file) for file in _files(layout)]
            for calibrate in dict.fromkeys(run[0] for run in runs)
        },
        groupings={
            grouping: [read(results / "cluster" / name / grouping / file) for file in _files(layout)]
            for grouping in dict.fromkeys(run.grouping for run in loaded)
        },
        texts=_texts(results / "scores" / name / "full", tasks),
        runs=loaded,
        winner=next((run for run in loaded if run.name == best), None),
    )


def _run(
    results: Path, model: str, name: str, layout: Mapping[str, Any], tasks: Sequence[str], metrics: Metrics
) -> Run:
    assembled = read(results / "models" / model / name / "provenance.json")
    made = assembled["provenance"]
    solved = [read(results / "solve" / model / name / file) for file in _files(layout)]
    return Run(
        name=name,
        folder=f"results/models/{model}/{name}",
        parameters=made["params"],
        code={"solve": solved[0]["provenance"]["code"], "assemble": made["code"]},
        files=assembled["files"],
        stock=checkpoint_card.is_stock(assembled["files"]),
        solved=solved,
        scores=metrics[model]["runs"][name],
        texts=_texts(results / "scores" / model / name, tasks),
    )


def _texts(scores: Path, tasks: Sequence[str]) -> list[dict[str, str]]:
    return read(scores / "generation.json")["continuations"] if "generation" in tasks else []


def _files(layout: Mapping[str, Any]) -> list[str]:
    return [f"layer_{layer['layer']:03d}.json" for layer in layout["layers"]]


def inputs(results: Path, models: Sequence[Model]) -> dict[str, str]:
    """Return {path: digest of its payload} of the artifacts that `models` and their metrics were read from."""
    paths = []
    for model in models:
        tasks = [f"{task}.json" for task in model.tasks]
        groupings = dict.fromkeys(run.grouping for run in model.runs)
        paths.append(f"layout/{model.name}.json")
        paths += [f"scores/{model.name}/full/{task}" for task in tasks]
        paths += [f"profile/{model.name}/{calibrate}/{file}" for calibrate in model.profiles for file in model.layers]
        paths += [f"cluster/{model.name}/{grouping}/{file}" for grouping in groupings for file in model.layers]
        for run in model.runs:
            paths += [f"scores/{model.name}/{run.name}/{task}" for task in tasks]
            paths += [f"solve/{model.name}/{run.name}/{file}" for file in model.layers]
            paths.append(f"models/{model.name}/{run.name}/provenance.json")
    return {f"results/{path}": provenance.content(results / path) for path in paths}
