"""The parts that all rules of the Snakefile share: command line, log, benchmark, threads, resources, code digest.

The Snakefile calls `prepare` once. From there on a rule that has the name of a stage gets them by that name, as if they
were written in it. A rule says only what is its own: named inputs and outputs, each an option of the command; unnamed
inputs, which a job only waits for; and `params`, which are further options. A rule whose paths have a subject gets
options that name its checkpoint; `made` replaces the input of that name.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts import paths
from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import STAGES
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import preflight
from stages.support import resources, runs, worker
from stages.support.graph import Graph

# Snakemake reruns a job if this text or the parameters `cfg` and `code` changed. It does not compare `options`, which
# are a function of the inputs, nor where `python` lies.
SHELL = "python -m stages.{params.stage} --cfg {params.cfg:q} --code {params.code} {params.options} 2> {log:q}"
ENVIRONMENT = "envs/conda.yaml"  # of `snakemake --software-deployment-method conda`
TOLD = ("layer", "task")  # wildcards that are options of the command, too
INSIDE = {"capture": paths.CAPTURED_LAYER}  # inputs that are folders, of which a job on one layer reads one file
PARTS = {  # of the page, for `snakemake --report`: their categories there
    "quality": "Quality over size",
    "errors": "Error of each layer",
    "experts": "Experts and their groups",
    "calibration": "Calibration",
}


def prepare(workflow: Any, config: Mapping[str, Any]) -> Graph:
    """Check all that can be checked before the first job, and complete the rules that follow.

    Raises:
        UserError: if params.yaml, a model, the SLURM profile or the folder is wrong, or the run of this job has ended.
    """
    if sys.flags.optimize > 1:
        raise UserError("PYTHONOPTIMIZE is 2, which takes away docstrings that transformers needs. Unset it")
    use_this_python()
    if workflow.remote_exec:  # the jobs of a group, on a node
        worker.start_if_asked()
    runs.refuse_another_folder(workflow.basedir)
    runs.refuse_if_over()
    runs.refuse_a_link()
    resources.check_profile()
    params = read_params(config)
    preflight.check_params(params)
    graph = Graph(params)
    complete_rules(workflow, graph)
    return graph


def page_parts(report: Callable[..., Any]) -> list[Any]:
    """Return the parts of the page as outputs that `snakemake --report` shows; `report` is Snakemake's function."""
    return [
        report(
            paths.PART.format(part=part),
            caption=f"mergemoe/report/templates/captions/{part}.rst",
            category=category,
            labels={"figure": category},
        )
        for part, category in PARTS.items()
    ]


def use_this_python() -> None:
    """Put the folder of the Python that runs Snakemake first on PATH, so that jobs find it as `python`."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def complete_rules(workflow: Any, graph: Graph) -> None:
    """Complete every rule that follows in the Snakefile and has the name of a stage.

    The keyword `rule` calls workflow.rule, and the directives in it workflow.log, workflow.params and so on.
    """
    make_rule = workflow.rule

    def rule(name: str | None = None, **place: Any) -> Callable[[Any], Any]:
        def decorate(info: Any) -> Any:
            if name in STAGES:
                for directive in _directives(workflow, graph, STAGES[name], info):
                    info = directive(info)
            return make_rule(name, **place)(info)

        return decorate

    workflow.rule = rule


def _directives(workflow: Any, graph: Graph, stage: Stage, info: Any) -> list[Callable[[Any], Any]]:
    """Return the directives that complete the rule of a stage; `info` holds the rule's own directives."""
    own = _params(graph, stage, info)
    found = [
        workflow.log(stage.log),
        workflow.conda(ENVIRONMENT),
        workflow.resources(**resources.resource_functions(graph.params, stage.name)),
        workflow.params(
            **own,
            stage=stage.name,
            cfg=graph.parameters(stage.name),
            code=graph.code(stage.name),
            options=_options(info, own),
        ),
    ]
    if stage.threads:
        found.append(workflow.threads(graph.threads(stage.name)))
    if stage.device == "gpu":
        found.append(workflow.benchmark(stage.log.replace("logs/", "logs/bench/", 1).replace(".log", ".jsonl")))
    return found


def _params(graph: Graph, stage: Stage, info: Any) -> dict[str, Any]:
    """Return the params of a rule that are options: its own, a subject's, and the path of a stage that is no output."""
    outputs = [*info.output.paths, *info.output.kwpaths.values()] if info.output else []
    return {
        **({} if stage.output in outputs else {"out": stage.output}),
        **(graph.subject_options if "subject" in stage.wildcards else {}),
        **(info.params[1] if info.params else {}),
    }


def _options(info: Any, own: dict[str, Any]) -> Callable[..., str]:
    """Return the function of the options of a job's command."""
    inputs, outputs = ([*files.kwpaths] if files else [] for files in (info.input, info.output))

    def options(wildcards: Any, input: Any, output: Any) -> str:
        names = dict(wildcards.items())
        given: dict[str, Any] = {name: names[name] for name in TOLD if name in names}
        for name in inputs:
            given[name] = INSIDE[name].format(**names) if name in INSIDE and "layer" in names else input[name]
        given |= {name: value(wildcards) if callable(value) else value.format(**names) for name, value in own.items()}
        given |= {name: output[name] for name in outputs}
        given.setdefault("out", next(iter(output), None))
        words = [[f"--{name}", *([value] if isinstance(value, str) else value)] for name, value in given.items()]
        return shlex.join(word for option in words for word in option)

    return options
