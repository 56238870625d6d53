"""Every job of the workflow, from params.yaml and the headers of its models, if nothing was done yet."""

from collections.abc import Iterator

from mergemoe.checkpoints import expert_headers
from mergemoe.workflow.config.params import Params

STAGES = (
    *("convert", "layout", "calibrate", "capture", "profile", "curve", "budget", "cluster", "solve"),
    *("assemble", "reference", "fidelity", "generate", "evaluate", "report"),
)


def every(params: Params) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield stage and wildcards of each job once; runs that share a choice share its jobs."""
    seen = set[tuple[str, ...]]()
    for stage, names in _of_runs(params):
        if (key := (stage, *names.values())) not in seen:
            seen.add(key)
            yield stage, names
    yield "report", {}


def _of_runs(params: Params) -> Iterator[tuple[str, dict[str, str]]]:
    tasks = {"fidelity": "fidelity", "generation": "generate"}
    for run in params.all_runs():
        model = {"model": run.model}
        calibrate = {**model, "calibrate": run.calibrate}
        cluster = {**calibrate, "cluster": run.cluster}
        numbers = list(expert_headers.count_experts(params.model[run.model].folder()))
        layers, chosen = [f"{layer:03d}" for layer in numbers], params.cluster[run.cluster]
        if params.model[run.model].copied():
            yield "convert", model
        yield from (("layout", model), ("calibrate", calibrate), ("capture", calibrate))
        yield from (("profile", {**calibrate, "layer": layer}) for layer in layers)
        if chosen.spent():
            inside = chosen.within(numbers) if chosen.budget != "usage" else ()
            yield from (("curve", {**cluster, "layer": f"{layer:03d}"}) for layer in inside)
            yield "budget", cluster
        for layer in layers:
            yield "cluster", {**cluster, "layer": layer}
            yield "solve", {**cluster, "solve": run.solve, "layer": layer}
        yield "assemble", {**cluster, "solve": run.solve}
        yield "reference", model
        for subject in ("full", "/".join(run[1:])):
            yield from (
                (tasks.get(task, "evaluate"), {**model, "subject": subject, "task": task})
                for task in params.evaluate.scored()
            )
