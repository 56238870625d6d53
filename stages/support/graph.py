"""Files, parameters, code and threads of the jobs of each rule, from params.yaml."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergemoe.artifacts import paths
from mergemoe.artifacts.paths import layer_name
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import STAGES, dvc_stages, stages_of
from mergemoe.checkpoints import expert_headers, model_folder
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.workflow.config.model import Model
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import jobs
from stages.support import tracking

Parameter = Callable[[Any], str]  # of a job: wildcards -> text


class Graph:
    """The functions of inputs, parameters and threads that the Snakefile takes from one params.yaml."""

    def __init__(self, params: Params):
        """Read the layers of each model from its safetensors headers."""
        self.params, self.runs = params, params.all_runs()
        used = sorted({run.model for run in self.runs})
        self.layers = {model: list(expert_headers.count_experts(params.model[model].folder())) for model in used}
        self.jobs = list(jobs.every_job(params))

    def run(self, wildcards: Any) -> Run:
        """Return the run whose checkpoint a job assembles."""
        named = "/".join((wildcards.calibrate, wildcards.cluster, wildcards.solution))
        return self.params.run_named(wildcards.model, named)

    def finished_layers(self, wildcards: Any) -> list[str]:
        """Return the layers of the run whose checkpoint a job assembles: the last that were made for it."""
        run = self.run(wildcards)
        pattern = paths.QUANTIZED if run.quantize else paths.REFINED if run.refine else paths.SOLVED
        return [pattern.format(**run.wildcards, layer=layer_name(layer)) for layer in self.layers[run.model]]

    def fitted_layer(self, wildcards: Any) -> str:
        """Return the layer that a job quantizes: a refined one, if its run has a refine."""
        solve, _, refine = wildcards.fitted.partition("+")
        return (paths.REFINED if refine else paths.SOLVED).format(**{**wildcards, "solve": solve, "refine": refine})

    def files(self, *names: str) -> list[str]:
        """Return the outputs of all jobs of some stages."""
        return [STAGES[name].output.format(**wildcards) for name, wildcards in self.jobs if name in names]

    def read_by(self, name: str) -> list[str]:
        """Return the outputs of all jobs of the stages that a stage reads: of a pair, the record."""
        read = {other: STAGES[other] for other in STAGES[name].reads}
        patterns = {other: stage.finished if stage.pair else stage.output for other, stage in read.items()}
        return [patterns[other].format(**wildcards) for other, wildcards in self.jobs if other in read]

    def targets(self) -> dict[str, list[str]]:
        """Return the files of every DVC stage that no other stage of it reads, in data-flow order.

        A stage that no run needs is left out.
        """
        last = {}
        for dvc in dvc_stages():
            inside = stages_of(dvc)
            last[dvc] = [stage.name for stage in inside if not any(stage.name in other.reads for other in inside)]
        return {dvc: files for dvc, names in last.items() if (files := self.files(*names))}

    def parameters(self, name: str) -> Parameter:
        """Return the parameter function of a stage: all that its jobs depend on in params.yaml, as one string."""
        stage = STAGES[name]
        if stage.parameters:
            return getattr(self, stage.parameters)
        return lambda wildcards: tracking.parameter_text(
            self._section(stage, wildcards).model_dump(include=set(stage.keys) or None)
        )

    def code(self, name: str) -> Parameter:
        """Return the function of a stage's code digest: for a solve with the file of its own method."""
        if not STAGES[name].method:
            return lambda wildcards: tracking.code_digest(f"stages.{name}")
        return lambda wildcards: tracking.code_digest(f"stages.{name}", self._method(wildcards))

    def threads(self, name: str) -> Callable[[Any], int]:
        """Return the function of a stage's number of threads."""
        return lambda wildcards: self._section(STAGES[name], wildcards).threads

    def _section(self, stage: Stage, wildcards: Any) -> Any:
        """Return the section that a job's parameters come from: among named choices the one that a wildcard names."""
        (section,) = stage.sections
        found = getattr(self.params, section)
        return found[wildcards[section]] if isinstance(found, dict) else found

    def _method(self, wildcards: Any) -> str:
        return f"mergemoe.methods.{self.params.solve[wildcards.solve].method}"

    def results(self, wildcards: Any) -> str:
        """Return the folder of all artifacts."""
        return paths.RESULTS

    def original_files(self, wildcards: Any) -> list[str]:
        """Return the files of the checkpoints that a choice names; for a hub model the record of its fetch."""
        chosen = self.params.model[wildcards.model]
        if chosen.revision:
            return [str(hub_cache.fetch_record_path(chosen.path, chosen.revision))]
        folders = map(Path, chosen.paths())
        return [str(path) for folder in folders for path in model_folder.checkpoint_files(folder)]

    def plain(self, model: str) -> Model:
        """Return the checkpoint that is compressed: the named one, or the plain copy of it."""
        chosen = self.params.model[model]
        return Model(path=paths.CONVERTED.format(model=model)) if chosen.copied() else chosen

    def checkpoint_files(self, wildcards: Any) -> list[str]:
        """Return the files of the checkpoint that is compressed; for a plain copy the one that lists the others.

        By that one's content Snakemake sees that a copy which was deleted and made again is the same.
        """
        copied = self.params.model[wildcards.model].copied()
        made = paths.provenance_of(paths.CONVERTED).format(**wildcards)
        return [made] if copied else self.original_files(wildcards)

    def plain_choice(self, wildcards: Any) -> str:
        """Return the checkpoint that is compressed as one string."""
        return tracking.parameter_text(self.plain(wildcards.model).model_dump())

    def layer_quantize_choice(self, wildcards: Any) -> str:
        """Return the options that the quantization of a layer depends on; assemble alone rounds the rest."""
        return tracking.parameter_text(self.params.quantize[wildcards.quantize].model_dump(exclude={"rest"}))

    def calibration_text(self, wildcards: Any) -> list[str]:
        """Return the local file that a calibration draws from; none for a data set."""
        source = self.params.calibrate[wildcards.calibrate].source
        return [source] if source else []

    def heldout_text(self, wildcards: Any) -> list[str]:
        """Return the local file of the held-out text; none for a data set."""
        source = self.params.evaluate.heldout.source
        return [source] if source else []

    def task_files(self, wildcards: Any) -> list[str]:
        """Return the files that define a task, if it is not lm-eval's own, or else its local data."""
        task = self.params.evaluate.tasks[wildcards.task]
        return tracking.files_below(task.include) + sorted(task.data_files.values())

    def folder(self, wildcards: Any) -> str:
        """Return the checkpoint of a subject: a folder, or a hub model's id, which is the same on every machine."""
        if wildcards.subject == "full":
            return self.plain(wildcards.model).path
        return paths.SUBJECT_MODEL.format(**wildcards)

    def made(self, wildcards: Any) -> str:
        """Return the input that stands for a subject's checkpoint: the layout, or the assembled folder."""
        return paths.LAYOUT.format(**wildcards) if wildcards.subject == "full" else self.folder(wildcards)

    @property
    def subject_options(self) -> dict[str, Parameter]:
        """Return the options that name what is scored: the checkpoint, and the artifact that lists its digests."""
        return {"made": self.digests, "model": self.folder}

    def digests(self, wildcards: Any) -> str:
        """Return the artifact that lists the digests of a subject's files."""
        made = self.made(wildcards)
        return made if wildcards.subject == "full" else paths.provenance_of(made)

    def measured(self, wildcards: Any) -> list[str]:
        """Return the artifacts that a budget is spent by: the curves of the layers in its range, or their profiles."""
        chosen = self.params.cluster[wildcards.cluster]
        path = paths.PROFILE if chosen.budget == "usage" else paths.CURVE
        inside = chosen.within(self.layers[wildcards.model])
        return [path.format(**wildcards, layer=layer_name(layer)) for layer in inside]

    def budget(self, wildcards: Any) -> list[str]:
        """Return the budget that sets the size of a layer; none if its choice sets it, or for a layer out of range."""
        chosen = self.params.cluster[wildcards.cluster]
        return [paths.BUDGET.format(**wildcards)] if chosen.spent() and chosen.within([int(wildcards.layer)]) else []

    def curve_choice(self, wildcards: Any) -> str:
        """Return the settings of a layer's curve: not how much is spent, but which sizes can be chosen."""
        chosen = self.params.cluster[wildcards.cluster]
        keys = {"by", "share", "width", "width_multiple", "max_size", "search", "threads"}
        return tracking.parameter_text({key: value for key, value in chosen.settings().items() if key in keys})

    def budget_choice(self, wildcards: Any) -> str:
        """Return the settings of a budget: how much is spent, and by which measure."""
        chosen = self.params.cluster[wildcards.cluster]
        return tracking.parameter_text(
            chosen.model_dump(include={"experts", "share", "per", "budget", "width", "width_multiple", "max_size"})
        )

    def cluster_choice(self, wildcards: Any) -> str:
        """Return the grouping of one layer: outside the choice's range, all experts are kept."""
        chosen = self.params.cluster[wildcards.cluster]
        inside = chosen.within([int(wildcards.layer)])
        return tracking.parameter_text(chosen.settings() | ({} if inside else {"experts": None}))

    def task_choice(self, wildcards: Any) -> str:
        """Return one task's settings, with how the models run."""
        evaluate = self.params.evaluate
        how = evaluate.model_dump(include={"dtype", "threads"})
        return tracking.parameter_text(evaluate.tasks[wildcards.task].model_dump(exclude={"trust_code"}) | how)

    def run_choice(self, wildcards: Any) -> str:
        """Return names and parameters of all choices that made a compressed checkpoint, for its card."""
        run = self.run(wildcards).choices
        chosen = {k: {"name": name, **getattr(self.params, k)[name].model_dump()} for k, name in run.items()}
        grouping = self.params.cluster[wildcards.cluster]
        chosen["cluster"] = {"name": wildcards.cluster, **grouping.settings(), "layers": grouping.layers}
        return tracking.parameter_text(chosen | {"capture": self.params.capture.model_dump()})

    def report_choice(self, wildcards: Any) -> str:
        """Return the runs and tasks that the report shows."""
        return tracking.parameter_text(
            {"runs": [run.listed for run in self.runs], "tasks": self.params.evaluate.scored()}
        )
