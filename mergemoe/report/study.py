"""Artifacts that the report shows beside the scores: of each model, and of each run made from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergemoe.artifacts import paths, provenance
from mergemoe.artifacts.paths import below
from mergemoe.artifacts.run import Run
from mergemoe.compressed import checkpoint_card
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.quantize_record import LayerQuantize
from mergemoe.moe.records import ByPart, LayerGrouping, LayerProfile, LayerSolve
from mergemoe.moe.refine_records import LayerRefine
from mergemoe.report.metrics import Metrics, Scores, There, columns, read_artifact, winner


@dataclass(frozen=True)
class RunResults:
    """One compressed model."""

    run: Run
    folder: str
    parameters: Mapping[str, Mapping[str, Any]]  # as checkpoint_card.unscored_card takes them
    code: Mapping[str, str]  # stage -> digest
    files: Mapping[str, str]  # of the checkpoint: name -> sha256
    stock: bool  # whether transformers loads it without code of ours
    solved: Sequence[LayerSolve]  # one per layer
    refined: Sequence[LayerRefine] | None  # one per layer, if the run has a refine
    quantized: Sequence[LayerQuantize] | None  # one per layer, if the run has a quantization
    scores: Scores
    texts: Sequence[Mapping[str, str]]  # continuations as text, if they were made

    @property
    def name(self) -> str:
        """Its name among the runs of its model."""
        return self.run.subject

    @property
    def grouping(self) -> str:
        """The choices that grouped the experts: calibrate/cluster."""
        return f"{self.run.calibrate}/{self.run.cluster}"

    @property
    def method(self) -> str:
        """The method that merged the experts, and what was added to it."""
        return checkpoint_card.method_of(self.parameters)  # the record of an untouched layer has no method

    @property
    def errors(self) -> list[ByPart]:
        """The output error of each layer, as the checkpoint has it."""
        return [layer["output_error"] for layer in self.quantized or self.refined or self.solved]


@dataclass(frozen=True)
class ModelResults:
    """One model, with all runs made from it."""

    name: str
    layout: Layout
    full: Scores
    columns: Sequence[str]
    tasks: Mapping[str, Mapping[str, Any]]  # version and samples of each
    profiles: Mapping[str, Sequence[LayerProfile]]  # calibrate -> one per layer
    groupings: Mapping[str, Sequence[LayerGrouping]]  # calibrate/cluster -> one per layer
    texts: Sequence[Mapping[str, str]]  # the full model's continuations, if they were made
    runs: Sequence[RunResults]
    winner: RunResults | None

    @property
    def layers(self) -> list[str]:
        """The numbers of its layers, as paths have them."""
        return _layers(self.layout)


def load_study(
    results: Path, runs: Sequence[Run], tasks: Sequence[str], metrics: Metrics, there: There | None = None
) -> list[ModelResults]:
    """Read the artifacts of every model in `metrics`; tasks without a score, as `there` tells, are left out.

    Raises:
        ArtifactError: if a file is missing or damaged.
    """
    models = []
    for name in metrics:
        own = [run for run in runs if run.model == name]
        seen = [task for task in tasks if there is None or all(map(there, _scores(results, name, own, task)))]
        models.append(_model(results, name, own, seen, metrics))
    return models


def _model(results: Path, name: str, runs: list[Run], tasks: Sequence[str], metrics: Metrics) -> ModelResults:
    layout = read_artifact(below(results, paths.LAYOUT, model=name))
    loaded = [_run(results, run, layout, tasks, metrics) for run in runs]
    best = winner(metrics[name])
    return ModelResults(
        name=name,
        layout=layout,
        full=metrics[name]["full"],
        columns=columns({name: metrics[name]}),
        tasks={task: read_artifact(_scores(results, name, runs[:1], task)[1]) for task in tasks},
        profiles={
            calibrate: _of_layers(results, paths.PROFILE, layout, model=name, calibrate=calibrate)
            for calibrate in dict.fromkeys(run.calibrate for run in runs)
        },
        groupings={
            run.grouping: _of_layers(results, paths.CLUSTER, layout, **run.run.choices)
            for run in {run.grouping: run for run in loaded}.values()
        },
        texts=_texts(results, name, "full", tasks),
        runs=loaded,
        winner=next((run for run in loaded if run.name == best), None),
    )


def _run(results: Path, run: Run, layout: Layout, tasks: Sequence[str], metrics: Metrics) -> RunResults:
    folder = paths.MODEL.format(**run.wildcards)
    assembled = read_artifact(below(results, paths.provenance_of(folder)))
    made = assembled["provenance"]
    solved = _of_layers(results, paths.SOLVE_RECORD, layout, **run.choices)
    refined = _of_layers(results, paths.REFINE_RECORD, layout, **run.choices) if run.refine else None
    quantized = _of_layers(results, paths.QUANTIZE_RECORD, layout, **run.wildcards) if run.quantize else None
    layered: dict[str, Any] = {"solve": solved, "refine": refined, "quantize": quantized}
    code = {stage: layers[0]["provenance"]["code"] for stage, layers in layered.items() if layers}
    return RunResults(
        run=run,
        folder=folder,
        parameters=made["params"],
        code={**code, "assemble": made["code"]},
        files=assembled["files"],
        stock=checkpoint_card.is_stock(assembled["files"]),
        solved=solved,
        refined=refined,
        quantized=quantized,
        scores=metrics[run.model]["runs"][run.subject],
        texts=_texts(results, run.model, run.subject, tasks),
    )


def _texts(results: Path, model: str, subject: str, tasks: Sequence[str]) -> list[dict[str, str]]:
    path = below(results, paths.GENERATION, model=model, subject=subject)
    return read_artifact(path)["continuations"] if "generation" in tasks else []


def _scores(results: Path, model: str, runs: Sequence[Run], task: str) -> list[Path]:
    """Return the files of one task's scores: of the full model, then of each run."""
    subjects = ("full", *(run.subject for run in runs))
    return [below(results, paths.SCORE, model=model, subject=subject, task=task) for subject in subjects]


def _of_layers(results: Path, pattern: str, layout: Layout, **names: str) -> list[Any]:
    return [read_artifact(below(results, pattern, layer=layer, **names)) for layer in _layers(layout)]


def _layers(layout: Layout) -> list[str]:
    return [paths.layer_name(layer["layer"]) for layer in layout["layers"]]


def inputs(results: Path, models: Sequence[ModelResults]) -> dict[str, str]:
    """Return {path: digest of its payload} of the artifacts that `models` and their metrics were read from."""
    read = dict.fromkeys(path for model in models for path in _inputs(model))
    return {path: provenance.content_digest(below(results, path)) for path in read}


def _inputs(model: ModelResults) -> Iterator[str]:
    subjects = ["full", *(run.name for run in model.runs)]
    yield paths.LAYOUT.format(model=model.name)
    for subject in subjects:
        yield from (paths.SCORE.format(model=model.name, subject=subject, task=task) for task in model.tasks)
    for layer in model.layers:
        yield from (paths.PROFILE.format(model=model.name, calibrate=one, layer=layer) for one in model.profiles)
        for run in model.runs:
            added = {paths.REFINE_RECORD: run.refined, paths.QUANTIZE_RECORD: run.quantized}
            read = [paths.CLUSTER, paths.SOLVE_RECORD, *(pattern for pattern, records in added.items() if records)]
            yield from (pattern.format(**run.run.wildcards, layer=layer) for pattern in read)
    for run in model.runs:
        yield paths.provenance_of(run.folder)
