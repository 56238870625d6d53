"""Compress Mixture-of-Experts models by merging experts; the rules stand in the order of the data.

A rule runs `python -m stages.<its name>` with an option for each named input and output, and for each of its `params`.
Its parameters from params.yaml, log, threads, resources and the digest of its code follow from its name: one row of
mergemoe/artifacts/stages.py, read by stages/support/rules.py. Paths are those of mergemoe/artifacts/paths.py.
"""

from snakemake.utils import min_version

from mergemoe.artifacts import paths
from mergemoe.workflow.config.params_file import check_files
from stages.support import runs, worker
from stages.support.mistakes import plain_errors
from stages.support.rules import SHELL, page_parts, prepare
from stages.support.tracking import files_below

min_version("9.0")


with plain_errors():
    check_files("params.yaml", workflow.overwrite_configfiles)


if not workflow.overwrite_configfiles:  # else the files of --configfile alone, as `mergemoe plan --params` means it

    configfile: "params.yaml"


with plain_errors():
    graph = prepare(workflow, config)


wildcard_constraints:
    **paths.PATTERNS,


onstart:
    with plain_errors():
        runs.begin_run(graph, workflow.touch, workflow.dag_settings)
        if workflow.local_exec:
            worker.start_if_asked()


onsuccess:
    runs.end_successful_run(graph)


onerror:
    runs.end_failed_run(graph, workflow.scheduler.failed)


rule all:
    """The report, and with it everything else."""
    input:
        paths.PAGE,


rule convert:
    """A plain checkpoint: of a quantized one, of one that transformers has no class for, or the average of several."""
    input:
        graph.original_files,
    output:
        paths.provenance_of(paths.CONVERTED),
    shell:
        SHELL


rule layout:
    """Where the experts of a checkpoint lie and how they compute."""
    input:
        graph.checkpoint_files,
    output:
        paths.LAYOUT,
    shell:
        SHELL


rule calibrate:
    """The sequences that compressions are fitted on, and the manifest of their documents."""
    input:
        layout=paths.LAYOUT,
        text=graph.calibration_text,
    output:
        paths.TOKENS,
        paths.MANIFEST,
    shell:
        SHELL


rule capture:
    """One pass of the model over the sequences: a folder with one file per MoE layer."""
    input:
        layout=paths.LAYOUT,
        tokens=paths.TOKENS,
    output:
        directory(paths.CAPTURE),
    shell:
        SHELL


rule profile:
    """Usage, saliency and router geometry of one layer's experts."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
    output:
        paths.PROFILE,
    shell:
        SHELL


rule curve:
    """One layer's error at each possible size; used only to divide a budget by error."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
        profile=paths.PROFILE,
    output:
        paths.CURVE,
    shell:
        SHELL


rule budget:
    """How many experts each layer keeps, and how wide, if one budget is spent over all layers."""
    input:
        layout=paths.LAYOUT,
        measured=graph.measured,
    output:
        paths.BUDGET,
    shell:
        SHELL


rule cluster:
    """The groups of one layer's experts: each becomes one expert."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
        profile=paths.PROFILE,
        budget=graph.budget,
    output:
        paths.CLUSTER,
    shell:
        SHELL


rule solve:
    """The merged experts of one layer, by one method, and the record of their errors."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
        profile=paths.PROFILE,
        cluster=paths.CLUSTER,
    output:
        paths.SOLVED,
        paths.SOLVE_RECORD,
    shell:
        SHELL


rule refine:
    """The merged experts of one layer, fitted further to the layer's original output, if a run asks for it."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
        solved=paths.SOLVED,
    output:
        paths.REFINED,
        paths.REFINE_RECORD,
    shell:
        SHELL


rule quantize:
    """The experts of one layer, each weight at a value of a format of few bits, if a run asks for it."""
    input:
        layout=paths.LAYOUT,
        capture=paths.CAPTURE,
        solved=graph.fitted_layer,
    output:
        paths.QUANTIZED,
        paths.QUANTIZE_RECORD,
    shell:
        SHELL


rule assemble:
    """The compressed Hugging Face checkpoint of one run."""
    input:
        layout=paths.LAYOUT,
        modeling="mergemoe/compressed/modeling.py",
        solved=graph.finished_layers,
    output:
        directory(paths.MODEL),
    shell:
        SHELL


rule reference:
    """The full model's states on the held-out text, which fidelity compares with."""
    input:
        layout=paths.LAYOUT,
        text=graph.heldout_text,
    output:
        directory(paths.REFERENCE),
    shell:
        SHELL


rule fidelity:
    """How near one model is to the full one, on the held-out text."""
    input:
        layout=paths.LAYOUT,
        made=graph.made,
        reference=paths.REFERENCE,
    output:
        paths.FIDELITY,
    shell:
        SHELL


rule generate:
    """How one model continues held-out prompts, if params.yaml asks for it."""
    input:
        layout=paths.LAYOUT,
        made=graph.made,
        reference=paths.REFERENCE,
    output:
        paths.GENERATION,
    shell:
        SHELL


rule evaluate:
    """The score of one model on one task of lm-eval."""
    input:
        made=graph.made,
        files=graph.task_files,
    output:
        paths.SCORE,
    priority: 1  # the full model first: a task that cannot be scored ends a run before anything is compressed
    shell:
        SHELL


rule report:
    """metrics.json, its tables, a card per run, the page, and parts of it that `snakemake --report` shows."""
    input:
        graph.read_by("report"),
        files_below("mergemoe/report/templates"),
    output:
        page_parts(report),
        metrics=paths.METRICS,
        quality=paths.QUALITY,
        errors=paths.ERRORS,
        page=paths.PAGE,
        cards=directory(paths.CARDS),
        out=paths.REPORTED,
    params:
        results=graph.results,
    shell:
        SHELL


rule report_partial:
    """A page of what `--keep-going` finished, and of what is missing. It declares no output to Snakemake, so it is never recorded."""
    params:
        results=graph.results,
        logs=paths.LOGS,
    shell:
        SHELL


# One target per DVC stage.
for _stage, _files in graph.targets().items():

    rule:
        name:
            f"stage_{_stage}"
        input:
            _files,
