"""List every job of the workflow, from params.yaml and the headers of its models, as if nothing was done yet."""

import itertools
from collections.abc import Iterator, Sequence

from mergemoe.artifacts import paths
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import recorded_stages
from mergemoe.checkpoints import expert_headers
from mergemoe.workflow.config.params import Params


def every_job(params: Params) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield stage and wildcards of each job once, stage by stage; runs that share a choice share its jobs."""
    runs = params.all_runs()
    layers = {run.model: list(expert_headers.count_experts(params.model[run.model].folder())) for run in runs}
    for stage in recorded_stages():
        seen = set[tuple[str, ...]]()
        for run in runs:
            for names in _jobs_of_run(params, stage, run, layers[run.model]):
                if (key := tuple(names.values())) not in seen:
                    seen.add(key)
                    yield stage.name, names


def _jobs_of_run(params: Params, stage: Stage, run: Run, layers: Sequence[int]) -> Iterator[dict[str, str]]:
    """Yield the wildcards of a stage's jobs for one run."""
    chosen, scored = params.cluster[run.cluster], params.evaluate.scored()
    needed = {
        "convert": params.model[run.model].copied(),
        "curve": chosen.spent() and chosen.budget != "usage",
        "budget": chosen.spent(),
        "refine": run.refine is not None,
        "quantize": run.quantize is not None,
        "generate": "generation" in scored,
    }
    if not needed.get(stage.name, True):
        return
    measured = chosen.within(layers) if stage.name == "curve" else layers
    values = {
        **{name: [value] for name, value in run.wildcards.items()},
        "layer": [paths.layer_name(layer) for layer in measured],
        "subject": ["full", run.subject],
        "task": list(params.evaluate.tasks),
    }
    for combination in itertools.product(*(values[name] for name in stage.wildcards)):
        yield dict(zip(stage.wildcards, combination, strict=True))
