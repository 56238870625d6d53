"""Compress Mixture-of-Experts models by merging experts; the rules stand in the order the data flows."""

from snakemake.utils import min_version

from mergemoe.artifacts import atomic, job_cache, verify
from mergemoe.artifacts.paths import (
    BUDGET,
    CAPTURE,
    CARDS,
    CLUSTER,
    CONVERTED,
    CURVE,
    ERRORS,
    FIDELITY,
    GENERATION,
    LAYOUT,
    MANIFEST,
    METRICS,
    MODEL,
    PAGE,
    PART,
    PATTERNS,
    PROFILE,
    QUALITY,
    REFERENCE,
    REPORTED,
    SCORE,
    SOLVE_RECORD,
    SOLVED,
    TOKENS,
    provenance_of,
)
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import preflight, preflight_texts
from stages.support import expected, mistakes, resources, runs
from stages.support.graph import PARTS, Graph
from stages.support.tracking import files_below

min_version("9.0")


configfile: "params.yaml"


with mistakes.told():
    runs.check()
    resources.check()
    params = read_params(config)
    preflight.check_params(params)
    graph = Graph(params)


wildcard_constraints:
    **PATTERNS,


onstart:
    atomic.sweep("results")
    job_cache.sweep("results", expected.claims(graph))
    runs.begin(graph)
    with mistakes.told():
        preflight_texts.check_texts(params)


onsuccess:
    runs.end()
    if verify.is_current(REPORTED, expected.claims(graph)):  # of all that is to be made, not of some targets
        job_cache.clear("results")


onerror:
    runs.end()
    runs.forget(graph, workflow.scheduler.failed)


rule all:
    """The report, and with it everything else."""
    default_target: True
    input:
        PAGE,


rule convert:
    """A plain copy of a checkpoint that is quantized, or of a form that transformers has no class for."""
    input:
        checkpoint=graph.original_files,
    output:
        provenance_of(CONVERTED),
    log:
        "logs/convert/{model}.log",
    resources:
        **resources.asked(params, "convert"),
    params:
        cfg=graph.parameters("convert"),
        code=graph.code("convert"),
    shell:
        "python -m stages.convert --cfg {params.cfg:q} --code {params.code}" " --out $(dirname {output:q}) 2> {log:q}"


rule layout:
    """Where the experts of a checkpoint lie and how they compute."""
    input:
        checkpoint=graph.checkpoint_files,
    output:
        LAYOUT,
    log:
        "logs/layout/{model}.log",
    resources:
        **resources.asked(params, "layout"),
    params:
        cfg=graph.parameters("layout"),
        code=graph.code("layout"),
    shell:
        "python -m stages.layout --cfg {params.cfg:q} --code {params.code} --out {output:q} 2> {log:q}"


rule calibrate:
    """The sequences that compressions are fitted on, and the manifest of their documents."""
    input:
        layout=LAYOUT,
        source=graph.calibration_text,
    output:
        TOKENS,
        MANIFEST,
    log:
        "logs/calibrate/{model}/{calibrate}.log",
    resources:
        **resources.asked(params, "calibrate"),
    params:
        cfg=graph.parameters("calibrate"),
        code=graph.code("calibrate"),
    shell:
        "python -m stages.calibrate --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --text {input.source:q} --out {output[0]:q} 2> {log:q}"


rule capture:
    """One pass of the model over the sequences: a folder with one file per MoE layer."""
    input:
        layout=LAYOUT,
        tokens=TOKENS,
    output:
        directory(CAPTURE),
    log:
        "logs/capture/{model}/{calibrate}.log",
    benchmark:
        "logs/bench/capture/{model}/{calibrate}.jsonl"
    threads: graph.threads("capture")
    resources:
        **resources.asked(params, "capture"),
    params:
        cfg=graph.parameters("capture"),
        code=graph.code("capture"),
    shell:
        "python -m stages.capture --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --tokens {input.tokens:q} --out {output:q} 2> {log:q}"


rule profile:
    """Usage, saliency and router geometry of one layer's experts."""
    input:
        layout=LAYOUT,
        capture=CAPTURE,
    output:
        PROFILE,
    log:
        "logs/profile/{model}/{calibrate}/layer_{layer}.log",
    threads: graph.threads("profile")
    resources:
        **resources.asked(params, "profile"),
    params:
        cfg=graph.parameters("profile"),
        code=graph.code("profile"),
    shell:
        "python -m stages.profile --cfg {params.cfg:q} --code {params.code} --layer {wildcards.layer}"
        " --layout {input.layout:q} --capture {input.capture:q}/layer_{wildcards.layer}.h5 --out {output:q} 2> {log:q}"


rule curve:
    """What one layer loses at other sizes, where a budget is spent by that."""
    input:
        layout=LAYOUT,
        capture=CAPTURE,
        profile=PROFILE,
    output:
        CURVE,
    log:
        "logs/curve/{model}/{calibrate}/{cluster}/layer_{layer}.log",
    threads: graph.threads("curve")
    resources:
        **resources.asked(params, "curve"),
    params:
        cfg=graph.parameters("curve"),
        code=graph.code("curve"),
    shell:
        "python -m stages.curve --cfg {params.cfg:q} --code {params.code} --layer {wildcards.layer}"
        " --layout {input.layout:q} --capture {input.capture:q}/layer_{wildcards.layer}.h5"
        " --profile {input.profile:q} --out {output:q} 2> {log:q}"


rule budget:
    """How many experts each layer keeps, and how wide, where one budget is spent over all of them."""
    input:
        layout=LAYOUT,
        measured=graph.measured,
    output:
        BUDGET,
    log:
        "logs/budget/{model}/{calibrate}/{cluster}.log",
    resources:
        **resources.asked(params, "budget"),
    params:
        cfg=graph.parameters("budget"),
        code=graph.code("budget"),
    shell:
        "python -m stages.budget --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --measured {input.measured:q} --out {output:q} 2> {log:q}"


rule cluster:
    """Which experts of one layer become one."""
    input:
        layout=LAYOUT,
        capture=CAPTURE,
        profile=PROFILE,
        budget=graph.budget,
    output:
        CLUSTER,
    log:
        "logs/cluster/{model}/{calibrate}/{cluster}/layer_{layer}.log",
    threads: graph.threads("cluster")
    resources:
        **resources.asked(params, "cluster"),
    params:
        cfg=graph.parameters("cluster"),
        code=graph.code("cluster"),
    shell:
        "python -m stages.cluster --cfg {params.cfg:q} --code {params.code} --layer {wildcards.layer}"
        " --layout {input.layout:q} --capture {input.capture:q}/layer_{wildcards.layer}.h5"
        " --profile {input.profile:q} --budget {input.budget:q} --out {output:q} 2> {log:q}"


rule solve:
    """The merged experts of one layer, by one method, and the record of their errors."""
    input:
        layout=LAYOUT,
        capture=CAPTURE,
        profile=PROFILE,
        cluster=CLUSTER,
    output:
        SOLVED,
        SOLVE_RECORD,
    log:
        "logs/solve/{model}/{calibrate}/{cluster}/{solve}/layer_{layer}.log",
    benchmark:
        "logs/bench/solve/{model}/{calibrate}/{cluster}/{solve}/layer_{layer}.jsonl"
    threads: graph.threads("solve")
    resources:
        **resources.asked(params, "solve"),
    params:
        cfg=graph.parameters("solve"),
        code=graph.code("solve"),
    shell:
        "python -m stages.solve --cfg {params.cfg:q} --code {params.code} --layer {wildcards.layer}"
        " --layout {input.layout:q} --capture {input.capture:q}/layer_{wildcards.layer}.h5"
        " --profile {input.profile:q} --cluster {input.cluster:q} --out {output[0]:q} 2> {log:q}"


rule assemble:
    """The compact Hugging Face checkpoint of one run."""
    input:
        layout=LAYOUT,
        modeling="mergemoe/compressed/modeling.py",
        solved=graph.per_layer(SOLVED),
    output:
        directory(MODEL),
    log:
        "logs/assemble/{model}/{calibrate}/{cluster}/{solve}.log",
    resources:
        **resources.asked(params, "assemble"),
    params:
        cfg=graph.parameters("assemble"),
        code=graph.code("assemble"),
    shell:
        "python -m stages.assemble --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --modeling {input.modeling:q} --solved {input.solved:q} --out {output:q} 2> {log:q}"


rule reference:
    """The full model's states on the held-out text, which fidelity compares with."""
    input:
        layout=LAYOUT,
        source=graph.heldout_text,
    output:
        directory(REFERENCE),
    log:
        "logs/reference/{model}.log",
    threads: graph.threads("reference")
    resources:
        **resources.asked(params, "reference"),
    params:
        cfg=graph.parameters("reference"),
        code=graph.code("reference"),
    shell:
        "python -m stages.reference --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --text {input.source:q} --out {output:q} 2> {log:q}"


rule fidelity:
    """How near one model is to the full one, on the held-out text."""
    input:
        layout=LAYOUT,
        made=graph.made,
        reference=REFERENCE,
    output:
        FIDELITY,
    log:
        "logs/fidelity/{model}/{subject}.log",
    benchmark:
        "logs/bench/fidelity/{model}/{subject}.jsonl"
    threads: graph.threads("fidelity")
    resources:
        **resources.asked(params, "fidelity"),
    params:
        cfg=graph.parameters("fidelity"),
        code=graph.code("fidelity"),
        model=graph.folder,
        made=graph.digests,
    shell:
        "python -m stages.fidelity --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --model {params.model:q} --made {params.made:q}"
        " --reference {input.reference:q} --out {output:q} 2> {log:q}"


rule generate:
    """How one model goes on from held-out prompts, where params.yaml asks for it."""
    input:
        layout=LAYOUT,
        made=graph.made,
        reference=REFERENCE,
    output:
        GENERATION,
    log:
        "logs/generate/{model}/{subject}.log",
    benchmark:
        "logs/bench/generate/{model}/{subject}.jsonl"
    threads: graph.threads("generate")
    resources:
        **resources.asked(params, "generate"),
    params:
        cfg=graph.parameters("generate"),
        code=graph.code("generate"),
        model=graph.folder,
        made=graph.digests,
    shell:
        "python -m stages.generate --cfg {params.cfg:q} --code {params.code}"
        " --layout {input.layout:q} --model {params.model:q} --made {params.made:q}"
        " --reference {input.reference:q} --out {output:q} 2> {log:q}"


rule evaluate:
    """The score of one model on one task of lm-eval."""
    input:
        made=graph.made,
        task=graph.task_files,
    output:
        SCORE,
    log:
        "logs/evaluate/{model}/{subject}/{task}.log",
    benchmark:
        "logs/bench/evaluate/{model}/{subject}/{task}.jsonl"
    threads: graph.threads("evaluate")
    resources:
        **resources.asked(params, "evaluate"),
    params:
        cfg=graph.parameters("evaluate"),
        code=graph.code("evaluate"),
        model=graph.folder,
        made=graph.digests,
    shell:
        "python -m stages.evaluate --cfg {params.cfg:q} --code {params.code} --task {wildcards.task}"
        " --model {params.model:q} --made {params.made:q} --files {input.task:q} --out {output:q} 2> {log:q}"


rule report:
    """metrics.json, its tables, a card per run, the page, and parts of it that `snakemake --report` shows."""
    input:
        layouts=graph.files("layout"),
        profiles=graph.files("profile"),
        clusters=graph.files("cluster"),
        solves=graph.files("solve", pattern=SOLVE_RECORD),
        models=graph.files("assemble"),
        scores=graph.files("fidelity", "generate", "evaluate"),
        templates=files_below("mergemoe/report/templates"),
    output:
        metrics=METRICS,
        quality=QUALITY,
        errors=ERRORS,
        page=PAGE,
        parts=[
            report(
                PART.format(part=part),
                caption=f"mergemoe/report/templates/captions/{part}.rst",
                category=category,
                labels={"figure": category},
            )
            for part, category in PARTS.items()
        ],
        cards=directory(CARDS),
        reported=REPORTED,
    log:
        "logs/report.log",
    resources:
        **resources.asked(params, "report"),
    params:
        cfg=graph.parameters("report"),
        code=graph.code("report"),
    shell:
        "python -m stages.report --cfg {params.cfg:q} --code {params.code} --results results"
        " --metrics {output.metrics:q} --quality {output.quality:q} --errors {output.errors:q}"
        " --page {output.page:q} --parts {output.parts:q} --cards {output.cards:q}"
        " --out {output.reported:q} 2> {log:q}"


rule report_partial:
    """A page of what there is after `--keep-going`, and of what there is not. It has no output: it is never recorded."""
    log:
        "logs/report_partial.log",
    resources:
        **resources.asked(params, "report_partial"),
    params:
        cfg=graph.parameters("report_partial"),
        code=graph.code("report_partial"),
    shell:
        "python -m stages.report_partial --cfg {params.cfg:q} --code {params.code} --results results --logs logs"
        " --page scratch/report_partial/index.html 2> {log:q}"


# One target per DVC stage.
for _stage, _files in graph.targets().items():

    rule:
        name:
            f"stage_{_stage}"
        input:
            _files,
