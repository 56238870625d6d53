"""Costs of a params.yaml before anything runs: parameters, bytes, jobs, disk, tokens."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mergemoe.artifacts import paths, store
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.stages import recorded_stages
from mergemoe.calibration import token_sequences
from mergemoe.checkpoints.expert_headers import read_plain_headers
from mergemoe.moe import layer_sizes
from mergemoe.quantization.options import weight_bits
from mergemoe.quantization.other_matrices import NONE
from mergemoe.text_table import aligned_table
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import jobs
from mergemoe.workflow.planning.block_formats import formats_table
from mergemoe.workflow.planning.model_counts import ModelCounts, model_counts
from mergemoe.workflow.planning.resources.refine_resources import refine_scratch


def kept_per_layer(params: Params, run: Run) -> dict[int, tuple[int, int]]:
    """Return {layer: (N, M)} of a run; a budget counts as spent evenly, on experts of full width."""
    chosen = params.cluster[run.cluster]
    first, last = chosen.bounds()
    kept = {}
    for layer, size in model_counts(params.model[run.model].folder()).routed.items():
        experts = (chosen.share or chosen.experts) if first <= layer <= last else None
        kept[layer] = (size["experts"], layer_sizes.kept_experts(experts, size["experts"]))
    return kept


def kept_widths(params: Params, run: Run) -> dict[int, int]:
    """Return {layer: I'} of a run; experts are as wide as before if a budget chooses their width later."""
    inside = set(params.cluster[run.cluster].within(layers := model_counts(params.model[run.model].folder()).routed))
    return {
        layer: params.kept_width(run.cluster, run.solve, size["width"]) if layer in inside else size["width"]
        for layer, size in layers.items()
    }


def run_size(params: Params, run: Run) -> dict[str, int]:
    """Return the parameters and bytes of a run's checkpoint: exact but for biases of narrower or quantized experts.

    A budget over all layers is counted as if it were spent evenly, which leaves the most. Experts of `oracle` are as
    wide as the largest group makes them, which is known only after clustering: they are counted as if all groups were
    equal, which is the least.
    """
    model, removed = model_counts(params.model[run.model].folder()), Counter[str]()
    widths = kept_widths(params, run)
    choice = params.quantize[run.quantize].model_dump() if run.quantize else {}
    bits, removed["bytes"] = weight_bits(choice) if choice else None, model.saved[choice.get("rest", NONE)]
    for layer, (n, m) in kept_per_layer(params, run).items():
        whole_width, width = model.routed[layer]["width"], widths[layer]
        if params.solve[run.solve].method == "oracle":
            width = whole_width * math.ceil(n / m)
        for what in ("parameters", "bytes"):
            whole = model.routed[layer][what]
            kept = whole * m * width // (n * whole_width)
            if what == "bytes" and bits:
                kept = int(model.routed[layer]["parameters"] * m * width // (n * whole_width) * bits / 8)
            removed[what] += whole - kept
            if params.routing(run.solve) != "preserved":
                removed[what] += model.routers[layer][what] * (n - m) // n
    return {"parameters": model.parameters - removed["parameters"], "bytes": model.bytes - removed["bytes"]}


def count_jobs(params: Params) -> dict[str, int]:
    """Return the number of jobs per rule, if nothing was done yet."""
    counted = Counter(stage for stage, _ in jobs.every_job(params))
    return {stage.name: counted[stage.name] for stage in recorded_stages()}


def disk(params: Params) -> dict[str, int]:
    """Return the bytes of the large artifacts: captures and references before compression (estimates), checkpoints."""
    runs = params.all_runs()
    copied = {params.model[run.model].folder() for run in runs if params.model[run.model].copied()}
    captures = references = 0
    for model, calibrate in {(run.model, run.calibrate) for run in runs}:
        chosen = params.calibrate[calibrate]
        counts = model_counts(params.model[model].folder())
        captures += captured_bytes(counts, params.capture.dtype, chosen.samples * chosen.length)
    for model in {run.model for run in runs}:
        heldout = params.evaluate.heldout
        counts = model_counts(params.model[model].folder())
        references += captured_bytes(counts, params.evaluate.dtype, heldout.samples * heldout.length)
    return {
        "plain copies": sum(entry["bytes"] for path in copied for entry in read_plain_headers(path).values()),
        "captures": captures,
        "references": references,
        "checkpoints": sum(run_size(params, run)["bytes"] for run in runs),
    }


def captured_bytes(model: ModelCounts, dtype: str, tokens: int) -> int:
    """Return the bytes of the captured activations of a text (an estimate, before lossless compression)."""
    size = 4 if dtype == "float32" else 2
    counts = [layer["experts"] for layer in model.routed.values()]
    return tokens * sum(size * (model.hidden + n + model.top_k) + 2 * model.top_k + 4 for n in counts)


def plan_text(params: Params, results: Path) -> str:
    """Return the plan as text; what `results` already holds makes estimates exact."""
    rows, runs = [["run", "parameters", "bytes", "of full"]], params.all_runs()
    for model in dict.fromkeys(run.model for run in runs):
        whole = model_counts(params.model[model].folder())
        rows.append([model, f"{whole.parameters:,}", f"{whole.bytes:,}", ""])
        for run in (run for run in runs if run.model == model):
            size = run_size(params, run)
            share = f"{size['bytes'] / whole.bytes:.1%}"
            rows.append([f"  {run.subject}", f"{size['parameters']:,}", f"{size['bytes']:,}", share])
    counted = count_jobs(params)
    lines = [aligned_table(rows, "<>"), "", f"jobs, from nothing: {sum(counted.values())}"]
    lines.append(aligned_table([[f"  {rule}", str(number)] for rule, number in counted.items()], "<>"))
    lines += ["", *params.left_out()] if params.left_out() else []
    if any(params.solve[run.solve].method == "oracle" for run in runs):
        lines += ["", "oracle is larger, the more unequal its groups are: its sizes are what equal groups would take"]
    lines += ["", "disk (checkpoints and plain copies exact; the others estimated, before lossless compression)"]
    lines.append(aligned_table([[f"  {what}", f"{size / 1e6:,.1f} MB"] for what, size in disk(params).items()], "<>"))
    lines += [*_refines(params), "", *_tokens(params, results)]
    lines += ["", "formats that quantize experts of these widths (`width_multiple` of `cluster` and `solve`)"]
    return "\n".join([*lines, _formats(params)])


def _formats(params: Params) -> str:
    """Return a table of the quantized formats that fit the rows of the runs' experts."""
    models = {run.model: model_counts(params.model[run.model].folder()) for run in params.all_runs()}
    widths = {width for run in params.all_runs() for width in kept_widths(params, run).values()}
    hidden = sorted({model.hidden for model in models.values()})
    return formats_table(hidden, [("down", width) for width in sorted(widths, reverse=True)])


def _refines(params: Params) -> list[str]:
    """Return a line with the disk that the largest job of a descent takes while it runs, if a run has one."""
    sizes = list[tuple[int, int]]()
    for run in (run for run in params.all_runs() if params.descents(run)):
        chosen, model = params.calibrate[run.calibrate], model_counts(params.model[run.model].folder())
        sizes.append((chosen.samples * chosen.length, model.hidden))
    if not sizes:
        return []
    tokens, hidden = max(sizes, key=math.prod)
    kept, recomputed = (refine_scratch(tokens, hidden, how) / 1e6 for how in ("kept", "recomputed"))
    return [
        f"  besides, scratch/ while a layer is refined or fitted on its grids: up to {kept:,.1f} MB, or "
        f"{recomputed:,.1f} MB with `targets: recomputed`"
    ]


def _tokens(params: Params, results: Path) -> list[str]:
    """Return lines with the tokens that each grouping's solve needs and has."""
    lines = ["tokens that a solve must exceed, with margin (group: those routed to it; joint: those of the layer)"]
    seen = set[tuple[Any, ...]]()
    for run in params.all_runs():
        model, chosen = model_counts(params.model[run.model].folder()), params.calibrate[run.calibrate]
        widths = kept_widths(params, run)
        held = token_sequences.heldout_count(chosen.samples, chosen.holdout)
        tokens = (chosen.samples - held) * chosen.length
        shapes: dict[tuple[int, int, int], list[int]] = {}
        for layer, (n, m) in kept_per_layer(params, run).items():
            if m < n or widths[layer] < model.routed[layer]["width"]:
                shapes.setdefault((n, m, widths[layer]), []).append(layer)
        for (n, m, width), layers in sorted(shapes.items()):
            if (run[:3], m, width) in seen:  # another method's, of the same groups
                continue
            seen.add((run[:3], m, width))
            need, exact = layer_sizes.needed_tokens(m, width), _smallest_group(results, run, layers, m)
            mean = min(tokens, tokens * model.top_k // m)
            gives = f"{exact:,} in the smallest" if exact else f"about {mean:,} (estimate)"
            lines.append(
                f"  {'/'.join(run[:3])}, {len(layers)} layers {n} -> {m} experts of width {width}: "
                f"group {need['group']:,}, has {gives}; joint {need['joint']:,}, has {tokens:,}"
            )
    return lines


def _smallest_group(results: Path, run: Run, layers: list[int], kept: int) -> int | None:
    """Return the fewest tokens routed to any group; None before the layers are clustered."""
    files = [paths.below(results, paths.CLUSTER, **run.choices, layer=paths.layer_name(layer)) for layer in layers]
    if not all(path.is_file() for path in files):
        return None
    clustered = [store.read_json(path) for path in files]
    if any(layer["kept"] != kept for layer in clustered):
        return None
    return min(group["routed_tokens"] for layer in clustered for group in layer["groups"])
