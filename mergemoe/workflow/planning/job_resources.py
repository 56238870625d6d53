"""What one job of each stage will need, before it runs: from headers, config.json and params.yaml alone.

A peak of memory is what a process holds at its worst moment: the base of its imports, the tensors that its code has at
once, and the pages of files that it has mapped then, which the system takes back under pressure. Values known only at
run time are assumed: budgets are spread evenly over layers; see layer_resources.py and model_resources.py.
Nothing here imports torch or transformers, so that the Snakefile can ask in every job it parses.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import layer_resources, model_resources
from mergemoe.workflow.planning.layer_resources import Layer, Peak
from mergemoe.workflow.planning.model_resources import Stored, Subject, size_of, tokens_of

Names = Mapping[str, str]

# MB that a stage takes for imports and libraries' own buffers: `peak_mb` of its logs of the demo (`snakemake --cores
# 1`, 2 cores of an AMD EPYC, Zen 3, 24 GiB, no GPU) less the tensors that are counted.
BASE = {
    "convert": 440,
    "layout": 400,
    "calibrate": 260,
    "capture": 460,
    "profile": 340,
    "curve": 440,
    "budget": 260,
    "cluster": 350,
    "solve": 375,
    "assemble": 400,
    "reference": 460,
    "fidelity": 480,
    "generate": 470,
    "evaluate": 560,
    "report": 75,
    "report_partial": 75,
}
MARGIN = 1.2  # for other machines, allocators and versions
GPU_ALLOWANCE = 2000  # MB of context, kernels and workspaces: an assumption, measured on no GPU
WHOLE = {"convert", "layout", "capture", "assemble", "reference", "fidelity", "generate", "evaluate"}
ON_GPU = {"capture", "profile", "curve", "cluster", "solve", "reference", "fidelity", "generate", "evaluate"}


class Need(NamedTuple):
    """What a job asks for.

    memory: MB (10^6) of the host's memory, the peak resident set of its process.
    gpu: MB of the GPU's memory, where the stage runs on one; 0 where it uses none.
    disk: MB that it has written at its worst moment, results/.tmp and scratch/ included.
    read: MB of a checkpoint that it reads: once to check it, once to use it.
    flops: multiply-adds that it computes, times 2.
    """

    memory: int
    gpu: int
    disk: int
    read: int
    flops: float


def of(params: Params, stage: str, names: Names) -> Need:
    """Return what the job of a stage needs; `names` are its rule's wildcards."""
    peak = _PEAKS[stage](params, dict(names.items()))  # Snakemake's are a list, whose `in` looks at values
    memory, gpu = (math.ceil(MARGIN * size / 1e6) for size in (peak.tensors + peak.host, peak.tensors))
    return Need(
        memory=math.ceil(MARGIN * BASE[stage]) + memory,
        gpu=GPU_ALLOWANCE + gpu if stage in ON_GPU else 0,
        disk=math.ceil(peak.disk / 1e6) + 1,  # and its record
        read=math.ceil(2 * _model(params, names).bytes / 1e6) if stage in WHOLE else 0,
        flops=float(peak.flops),
    )


def _model(params: Params, names: Names) -> Stored:
    return model_resources.stored(params.model[names["model"]].folder())


def _inside(params: Params, names: Names) -> bool:
    return bool(params.cluster[names["cluster"]].within([int(names["layer"])]))


def _layer(params: Params, names: Names) -> Layer:
    """Return what a job makes of its layer; a profile's, where nothing is chosen yet, stays as it is."""
    model, text = _model(params, names), params.calibrate[names["calibrate"]]
    sizes = model.routed[int(names["layer"])]
    n, kept, share, largest = sizes["experts"], sizes["experts"], 1.0, 1
    if "cluster" in names and _inside(params, names):
        chosen = params.cluster[names["cluster"]]
        kept = layer_sizes.kept_experts(chosen.share or (None if chosen.by == "none" else chosen.experts), n)
        share = getattr(params.solve[names["solve"]], "width", 1.0) if "solve" in names else chosen.width
        share = chosen.width if share == "auto" else share
        unbounded = layer_resources.doubled(n / kept) if chosen.by == "selection" else n - kept + 1
        largest = 1 if chosen.by == "saliency" else min(unbounded, chosen.max_size or n)
    return Layer(
        experts=n,
        kept=kept,
        width=sizes["width"],
        kept_width=layer_sizes.kept_width(share, sizes["width"]),
        hidden=model.hidden,
        top_k=model.top_k,
        numbers=sizes["parameters"],
        stored=sizes["bytes"],
        largest=largest,
        tokens=tokens_of(text),
        captured=size_of(params.capture.dtype),
    )


def _subject(params: Params, names: Names) -> Subject:
    """Return a checkpoint: as large as plan.sizes says, but for rows of routers, of headers read once."""
    model, subject = _model(params, names), names.get("subject")
    if subject == "full":
        return model.subject
    run = dict(zip(("calibrate", "cluster", "solve"), subject.split("/"), strict=True)) if subject else {}
    numbers, size, routed = float(model.numbers), float(model.bytes), 0.0
    for number in model.routed:
        layer = _layer(params, {**names, **run, "layer": str(number)})
        grown = params.solve[{**names, **run}["solve"]].method == "oracle"
        width = layer.width * math.ceil(layer.experts / layer.kept) if grown else layer.kept_width
        left = layer.kept * width / (layer.experts * layer.width)
        numbers, size = numbers - (1 - left) * layer.numbers, size - (1 - left) * layer.stored
        routed = max(routed, left * layer.numbers)
    return Subject(numbers, size, routed)


def _calibrate(params: Params, names: Names) -> Peak:
    text = params.calibrate[names["calibrate"]]
    source = Path(text.source or "")
    size = source.stat().st_size if source.is_file() else 0
    # The text unpacked, and as documents; tokens as Python's integers, then as tensors.
    return Peak(0, 10 * size + 64 * tokens_of(text), 6 * tokens_of(text))


def _curve(params: Params, names: Names) -> Peak:
    layer, chosen = _layer(params, names), params.cluster[names["cluster"]]
    sizes = layer_sizes.measured_sizes(layer.experts, layer.width, chosen.share, layer.kept_width, chosen.max_size)
    return layer_resources.curve(layer, chosen.by, sizes)


def _cluster(params: Params, names: Names) -> Peak:
    by = params.cluster[names["cluster"]].by if _inside(params, names) else "none"
    return layer_resources.cluster(_layer(params, names), by)


def _solve(params: Params, names: Names) -> Peak:
    chosen = params.solve[names["solve"]]
    method = chosen.method if _inside(params, names) else "none"
    return layer_resources.solve(_layer(params, names), method, chosen.model_dump())


def _assemble(params: Params, names: Names) -> Peak:
    size = round(_subject(params, names).bytes)
    return Peak(0, size, size)  # what is written is mapped: solved layers, and the original's other tensors


def _fidelity(params: Params, names: Names) -> Peak:
    full = names["subject"] == "full"
    return model_resources.fidelity(_model(params, names), _subject(params, names), params.evaluate, full)


def _generate(params: Params, names: Names) -> Peak:
    full = names["subject"] == "full"
    return model_resources.generate(_model(params, names), _subject(params, names), params.evaluate, full)


def _evaluate(params: Params, names: Names) -> Peak:
    how = params.evaluate
    return model_resources.evaluate(_model(params, names), _subject(params, names), how, how.tasks[names["task"]])


def _report(params: Params, names: Names) -> Peak:
    """Return what a page needs: the profiles' numbers, N by N of each layer, as text and as Python's objects."""
    profiled = {run[:2] for run in params.all_runs()}
    layers = [one for model, _ in profiled for one in _model(params, {"model": model}).routed.values()]
    return Peak(0, sum(100 * one["experts"] ** 2 for one in layers), 20e6)


_PEAKS: dict[str, Callable[[Params, Names], Peak]] = {
    "convert": lambda p, names: model_resources.convert(_model(p, names), p.model[names["model"]].dequantize),
    "layout": lambda p, names: Peak(0, _model(p, names).shard),  # mapped, and looked at part by part
    "calibrate": _calibrate,
    "capture": lambda p, names: model_resources.streamed(_model(p, names), p.calibrate[names["calibrate"]], p.capture),
    "profile": lambda p, names: layer_resources.profile(_layer(p, names)),
    "curve": _curve,
    "budget": lambda p, names: Peak(0),
    "cluster": _cluster,
    "solve": _solve,
    "assemble": _assemble,
    "reference": lambda p, names: model_resources.streamed(_model(p, names), p.evaluate.heldout, p.evaluate),
    "fidelity": _fidelity,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": _report,
    "report_partial": _report,
}
