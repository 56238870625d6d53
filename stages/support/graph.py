"""The paths of the workflow: which files each choice, run, layer and score has, and what a rule's job depends on."""

from collections.abc import Callable
from typing import Any

from mergemoe.checkpoints import expert_headers, hub_cache, model_folder
from mergemoe.workflow.config.params import Model, Params
from stages.support import tracking

CONVERTED = "results/convert/{model}"  # a folder; its provenance.json stands for it
LAYOUT = "results/layout/{model}.json"
TOKENS = "results/calibrate/{model}/{calibrate}/tokens"
CAPTURE = "results/capture/{model}/{calibrate}"  # a folder of layer_{layer}.h5
PROFILE = "results/profile/{model}/{calibrate}/layer_{layer}.json"
CURVE = "results/curve/{model}/{calibrate}/{cluster}/layer_{layer}.json"
BUDGET = "results/budget/{model}/{calibrate}/{cluster}.json"
CLUSTER = "results/cluster/{model}/{calibrate}/{cluster}/layer_{layer}.json"
SOLVE = "results/solve/{model}/{calibrate}/{cluster}/{solve}/layer_{layer}"
MODEL = "results/models/{model}/{calibrate}/{cluster}/{solve}"
REFERENCE = "results/scores/{model}/full/reference"
SCORE = "results/scores/{model}/{subject}/{task}.json"
METRICS, PAGE, CARDS = "results/metrics.json", "results/report/index.html", "results/cards"
REPORTED = "results/report/provenance.json"
QUALITY, ERRORS = "results/quality.csv", "results/errors.csv"
PARTS = {  # of the page, for Snakemake's own report: their categories there
    "quality": "Quality over size",
    "errors": "Error of each layer",
    "experts": "Experts and their groups",
    "calibration": "Calibration",
}

# Of a path's parts. A subject is what is scored: the full model, or a run of it.
PATTERNS = {
    **dict.fromkeys(("model", "calibrate", "cluster", "solve"), r"\w+"),
    "layer": r"\d{3}",
    "subject": r"full|\w+/\w+/\w+",
    "task": r"(?!(?:fidelity|generation)\.json$)\w[\w.-]*",
}

Parameter = Callable[[Any], str]  # of a job: wildcards -> text


class Graph:
    """What the Snakefile asks of one params.yaml."""

    def __init__(self, params: Params):
        """Read the layers of each model from its safetensors headers."""
        self.params, self.runs = params, params.all_runs()
        used = sorted({run.model for run in self.runs})
        self.layers = {model: list(expert_headers.count_experts(params.model[model].folder())) for model in used}

    def per_layer(self, pattern: str) -> Callable[[Any], list[str]]:
        """Return an input function: the pattern's paths for every MoE layer of a job's model."""
        return lambda wildcards: [
            pattern.format(**wildcards, layer=f"{layer:03d}") for layer in self.layers[wildcards.model]
        ]

    def every(self, pattern: str) -> list[str]:
        """Return the pattern's paths over all runs and layers; runs that share a choice share its files."""
        return sorted(
            {
                pattern.format(**run._asdict(), layer=f"{layer:03d}")
                for run in self.runs
                for layer in self.layers[run.model]
            }
        )

    def scores(self) -> list[str]:
        """Return the score files of all full models and runs."""
        tasks = self.params.evaluate.scored()
        subjects = {(run.model, subject) for run in self.runs for subject in ("full", "/".join(run[1:]))}
        return [SCORE.format(model=m, subject=s, task=task) for m, s in sorted(subjects) for task in tasks]

    def targets(self) -> dict[str, list[str]]:
        """Return the files of every DVC stage, in data-flow order."""
        each = {
            "layout": LAYOUT,
            "calibrate": TOKENS + ".safetensors",
            "capture": CAPTURE,
            "profile": PROFILE,
            "cluster": CLUSTER,
            "solve": SOLVE + ".json",
            "assemble": MODEL,
        }
        scores = self.scores()
        return {stage: self.every(path) for stage, path in each.items()} | {"evaluate": scores, "report": [PAGE]}

    def original_files(self, wildcards: Any) -> list[str]:
        """Return the files of the checkpoint that a choice names; of a hub model the record of what was fetched."""
        chosen = self.params.model[wildcards.model]
        if chosen.revision:
            return [str(hub_cache.record(chosen.path, chosen.revision))]
        return [str(path) for path in model_folder.files(chosen.folder())]

    def plain(self, model: str) -> Model:
        """Return the checkpoint that is compressed: the named one, or the plain copy of it."""
        chosen = self.params.model[model]
        return Model(path=CONVERTED.format(model=model)) if chosen.copied() else chosen

    def checkpoint_files(self, wildcards: Any) -> list[str]:
        """Return the files of the checkpoint that is compressed; of a plain copy the one that lists the others.

        By that one's content Snakemake sees that a copy which was deleted and made again is the same.
        """
        copied = self.params.model[wildcards.model].copied()
        made = f"{CONVERTED}/provenance.json".format(**wildcards)
        return [made] if copied else self.original_files(wildcards)

    def plain_choice(self, wildcards: Any) -> str:
        """Return the checkpoint that is compressed as one string."""
        return tracking.cfg(self.plain(wildcards.model).model_dump())

    def calibration_text(self, wildcards: Any) -> list[str]:
        """Return the local file that a calibration draws from; none for a data set."""
        source = self.params.calibrate[wildcards.calibrate].source
        return [source] if source else []

    def heldout_text(self, wildcards: Any) -> list[str]:
        """Return the local file of the held-out text; none for a data set."""
        source = self.params.evaluate.heldout.source
        return [source] if source else []

    def task_files(self, wildcards: Any) -> list[str]:
        """Return the files that define a task, where it is not lm-eval's own, or the local data of one that is."""
        task = self.params.evaluate.tasks[wildcards.task]
        return tracking.files_below(task.include) + sorted(task.data_files.values())

    def folder(self, wildcards: Any) -> str:
        """Return the checkpoint of a subject: a folder, or a hub model's id, which is the same on every machine."""
        if wildcards.subject == "full":
            return self.plain(wildcards.model).path
        return f"results/models/{wildcards.model}/{wildcards.subject}"

    def made(self, wildcards: Any) -> str:
        """Return the input that stands for a subject's checkpoint: the layout, or the assembled folder."""
        return LAYOUT.format(**wildcards) if wildcards.subject == "full" else self.folder(wildcards)

    def digests(self, wildcards: Any) -> str:
        """Return the artifact that lists the digests of a subject's files."""
        made = self.made(wildcards)
        return made if wildcards.subject == "full" else f"{made}/provenance.json"

    def choice(self, kind: str) -> Parameter:
        """Return a parameter function: the named choice of a job, complete, as one string."""
        return lambda wildcards: tracking.cfg(getattr(self.params, kind)[wildcards[kind]].model_dump())

    def threads(self, kind: str) -> Callable[[Any], int]:
        """Return the number of threads of a job's named choice."""
        return lambda wildcards: getattr(self.params, kind)[wildcards[kind]].threads

    def measured(self, wildcards: Any) -> list[str]:
        """Return what a budget is spent by: the curves of the layers in its range, or their profiles."""
        chosen = self.params.cluster[wildcards.cluster]
        path = PROFILE if chosen.budget == "usage" else CURVE
        inside = chosen.within(self.layers[wildcards.model])
        return [path.format(**wildcards, layer=f"{layer:03d}") for layer in inside]

    def budget(self, wildcards: Any) -> list[str]:
        """Return the budget that says what a layer keeps; none where its choice does, or for a layer out of range."""
        chosen = self.params.cluster[wildcards.cluster]
        return [BUDGET.format(**wildcards)] if chosen.spent() and chosen.within([int(wildcards.layer)]) else []

    def curve_choice(self, wildcards: Any) -> str:
        """Return what a layer's curve depends on: not how much is spent, but where a share leaves sizes to choose."""
        chosen = self.params.cluster[wildcards.cluster]
        return tracking.cfg(chosen.model_dump(include={"by", "share", "width", "max_size", "threads"}))

    def budget_choice(self, wildcards: Any) -> str:
        """Return how much is spent, and by what."""
        chosen = self.params.cluster[wildcards.cluster]
        return tracking.cfg(chosen.model_dump(include={"experts", "share", "per", "budget", "width", "max_size"}))

    def cluster_choice(self, wildcards: Any) -> str:
        """Return the grouping of one layer: outside the choice's range, all experts are kept."""
        chosen = self.params.cluster[wildcards.cluster]
        inside = chosen.within([int(wildcards.layer)])
        return tracking.cfg(chosen.settings() | ({} if inside else {"experts": None}))

    def solve_code(self, wildcards: Any) -> str:
        """Return the digest of a solve's code: the stage and its own method, not its neighbours."""
        return tracking.code("stages.solve", f"mergemoe.methods.{self.params.solve[wildcards.solve].method}")

    def task_choice(self, wildcards: Any) -> str:
        """Return one task's settings, with how the models run."""
        evaluate = self.params.evaluate
        how = evaluate.model_dump(include={"dtype", "threads"})
        return tracking.cfg(evaluate.tasks[wildcards.task].model_dump() | how)

    def run_choice(self, wildcards: Any) -> str:
        """Return all that made a compressed checkpoint: names and parameters, for its card."""
        kinds = ("model", "calibrate", "cluster", "solve")
        chosen = {k: {"name": wildcards[k], **getattr(self.params, k)[wildcards[k]].model_dump()} for k in kinds}
        grouping = self.params.cluster[wildcards.cluster]
        chosen["cluster"] = {"name": wildcards.cluster, **grouping.settings(), "layers": grouping.layers}
        return tracking.cfg(chosen | {"capture": self.params.capture.model_dump()})

    def section(self, name: str) -> str:
        """Return a section that holds no named choices as one string."""
        return tracking.cfg(getattr(self.params, name).model_dump())

    def evaluate(self, *keys: str) -> str:
        """Return keys of section evaluate as one string."""
        return tracking.cfg(self.params.evaluate.model_dump(include=set(keys)))

    def report(self) -> str:
        """Return the runs and tasks that the report shows."""
        return tracking.cfg({"runs": [list(run) for run in self.runs], "tasks": self.params.evaluate.scored()})
