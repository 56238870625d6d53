"""Checks before the first job: what can be known to fail later is said now, in one message."""

import re
from collections.abc import Mapping
from pathlib import Path

from mergemoe.checkpoints import expert_headers, hub_cache, model_folder, router_headers, validation
from mergemoe.errors import UserError
from mergemoe.grouping.allocation import NO_SIZE_IN_COMMON
from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.params import Params, Run


def check(params: Params) -> None:
    """Check models, groupings, files; reads JSON headers alone, so every parse of the Snakefile may call it.

    Raises:
        UserError: with the key of params.yaml to change.
    """
    layers = {model: _experts(model, params) for model in dict.fromkeys(run.model for run in params.all_runs())}
    for model in layers if params.evaluate.tasks else ():
        if model_folder.read_config(params.model[model].folder()).get("is_encoder_decoder"):
            raise UserError(
                f"evaluate.tasks: model.{model} has an encoder. lm-eval's tasks score how a text goes on, and none "
                "says which part of it an encoder should read: a score would hang on our choice. Set `tasks: {}`; "
                "fidelity, over the second half of every held-out sequence, is measured all the same"
            )
    for model in layers if params.evaluate.generation else ():
        if model_folder.read_config(params.model[model].folder()).get("is_encoder_decoder"):
            raise UserError(
                f"evaluate.generation: model.{model} has an encoder, and generation is not measured for these: "
                "what the encoder reads and what the decoder begins with would be our choice. Leave the section out"
            )
    for model, cluster in dict.fromkeys((run.model, run.cluster) for run in params.all_runs()):
        chosen = params.cluster[cluster]
        first, last = chosen.bounds()
        inside = {layer: count for layer, count in layers[model].items() if first <= layer <= last}
        if not inside:
            raise UserError(
                f"cluster.{cluster}.layers: {chosen.layers} holds no MoE layer of {model}; "
                f"it has {', '.join(map(str, layers[model]))}"
            )
        if chosen.share:
            _check_share(params, model, cluster, inside)
        for layer, count in inside.items() if not chosen.share else ():
            try:
                kept = layer_sizes.kept_experts(chosen.experts, count)
                if chosen.max_size and kept * chosen.max_size < count:
                    raise UserError(f"`max_size: {chosen.max_size}` is too small for {kept} groups of {count} experts")
                least = layer_sizes.measured_experts(count, chosen.max_size)[0]
                if chosen.budget == "error" and kept < least:
                    raise UserError(
                        f"{kept} of {count} experts are kept, and `budget: error` measures no layer below {least}: "
                        "keep more, or take `budget: uniform`"
                    )
            except UserError as error:
                raise UserError(f"cluster.{cluster}, layer {layer} of {model}: {error}") from None
    for run in params.all_runs():
        chosen = params.cluster[run.cluster]
        if chosen.spent() and chosen.budget != "usage" and not params.calibrate[run.calibrate].holdout:
            raise UserError(
                f"cluster.{run.cluster} spends by the error on held-out tokens, and calibrate.{run.calibrate}.holdout "
                "is 0: set it to a share such as 0.125"
            )
        if getattr(params.solve[run.solve], "ridge", None) == "auto" and not params.calibrate[run.calibrate].holdout:
            raise UserError(
                f"solve.{run.solve}.ridge is auto, which chooses by held-out sequences, and calibrate.{run.calibrate}"
                ".holdout is 0: set it to a share such as 0.125, or give the ridge a number"
            )
        _check_routing(params, run, layers[run.model])
    texts = {f"calibrate.{run.calibrate}": params.calibrate[run.calibrate] for run in params.all_runs()}
    for name, wanted in {**texts, "evaluate.heldout": params.evaluate.heldout}.items():
        if wanted.source is not None and not Path(wanted.source).is_file():
            raise UserError(f"{name}.source: {wanted.source}: no such file")
    for name, task in params.evaluate.tasks.items():
        for split, path in task.data_files.items():
            if not Path(path).is_file():
                raise UserError(f"evaluate.tasks.{name}.data_files.{split}: {path}: no such file")
        if task.include is not None and not Path(task.include).is_dir():
            raise UserError(f"evaluate.tasks.{name}.include: {task.include} is no folder")
        if task.include is not None and not _defines(Path(task.include), name):
            raise UserError(
                f"evaluate.tasks.{name}: no *.yaml file in {task.include} says `task: {name}` or `group: {name}`"
            )


def _check_share(params: Params, model: str, cluster: str, inside: Mapping[int, int]) -> None:
    """Check that layers have sizes that a share allows, and common ones where all are to have one."""
    chosen, sized = params.cluster[cluster], expert_headers.read_expert_sizes(params.model[model].folder())
    assert chosen.share
    found = []
    for layer, count in inside.items():
        width = sized[layer]["width"]
        found.append(set(layer_sizes.measured_sizes(count, width, chosen.share, 0, chosen.max_size)))
        if not found[-1]:
            raise UserError(
                f"cluster.{cluster}, layer {layer} of {model}: {chosen.share:.3g} of {count} experts of width {width} "
                "leaves no size: each group keeps 8 neurons at least where the width is a multiple of 8, or one. Raise "
                "`share`, or `max_size` if it is set"
            )
    if chosen.per == "model" and not set.intersection(*found):
        raise UserError(f"cluster.{cluster}, {model}: {NO_SIZE_IN_COMMON}")


def _check_routing(params: Params, run: Run, counts: Mapping[int, int]) -> None:
    """Check a run whose routers lose rows: what comes of it must be a stock model."""
    routing, chosen = params.routing(run.solve), params.cluster[run.cluster]
    if routing == "preserved":
        return
    if chosen.spent():
        spent = "share" if chosen.share else f"budget: {chosen.budget}"
        raise UserError(
            f"{'/'.join(run)}: with `{spent}`, what layers measure says how many experts they keep, and the routing is "
            f"{routing}: a stock model has one number, known before. Set `experts` alone, or take a method that keeps "
            "the routing"
        )
    config = model_folder.read_config(params.model[run.model].folder())
    first, last = chosen.bounds()
    kept = {layer_sizes.kept_experts(chosen.experts, n) if first <= layer <= last else n for layer, n in counts.items()}
    try:
        if len(kept) > 1:
            raise UserError(
                f"its layers would have {sorted(kept)} experts, and the routing is {routing}: a stock model has one "
                "number of experts. Set `layers: all`, or take a method that keeps the routing"
            )
        top_k, groups, top_groups = (
            expert_headers.config_top_k(config) or 1,
            config.get("n_group") or 1,
            config.get("topk_group") or 1,
        )
        router_headers.check_router(config["model_type"], routing, kept.pop(), top_k, groups, top_groups)
    except UserError as error:
        raise UserError(f"{'/'.join(run)}: {error}") from None


def _defines(folder: Path, task: str) -> bool:
    line = re.compile(rf"^(task|group): *[\"']?{task}[\"']? *$", re.MULTILINE)
    return any(line.search(path.read_text()) for path in folder.rglob("*.yaml"))


def _experts(model: str, params: Params) -> dict[int, int]:
    chosen = params.model[model]
    try:
        folder = chosen.folder()
        validation.check_checkpoint(folder, chosen.dequantize)
        if chosen.revision and not (written := hub_cache.fetch_record_path(chosen.path, chosen.revision)).is_file():
            command = hub_cache.fetch_command(chosen.path, chosen.revision)
            raise UserError(f"{written}, which says what was fetched, is missing: run `{command}`")
        return expert_headers.count_experts(folder)
    except UserError as error:
        raise UserError(f"model.{model}: {error}") from None
