"""Checks of params.yaml and checkpoints before the first job, so that a mistake stops the run early."""

import math
from collections.abc import Mapping
from pathlib import Path

from mergemoe.artifacts.run import Run
from mergemoe.calibration.text_rows import check_file
from mergemoe.calibration.token_sequences import heldout_count
from mergemoe.checkpoints import config_keys, expert_headers, model_folder, router_headers, validation
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.errors import UserError
from mergemoe.grouping.allocation import NO_SIZE_IN_COMMON
from mergemoe.models.averaging import averages
from mergemoe.moe import layer_sizes
from mergemoe.quantization.options import misfit
from mergemoe.reconstruction.requirements import no_part, too_few
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import plan
from mergemoe.workflow.planning.model_counts import model_counts
from mergemoe.workflow.planning.preflight_tasks import check_task


def check_params(params: Params) -> None:
    """Check models, groupings, files; reads JSON headers alone, so every parse of the Snakefile may call it.

    Raises:
        UserError: with the key of params.yaml to change.
    """
    layers = {model: experts_of(model, params) for model in dict.fromkeys(run.model for run in params.all_runs())}
    for model in layers:
        _check_encoder(params, model)
    for model, cluster in dict.fromkeys((run.model, run.cluster) for run in params.all_runs()):
        _check_cluster(params, model, cluster, layers[model])
    for run in params.all_runs():
        check_run(params, run, layers[run.model])
    for model, refine in dict.fromkeys((run.model, run.refine) for run in params.all_runs() if run.refine):
        _check_parts(params, model, refine)
    _check_files(params)


def check_run(params: Params, run: Run, experts: Mapping[int, int]) -> None:
    """Check that the choices of a run fit its model, whose layers have so many experts: {layer: N}.

    Raises:
        UserError: with the key of params.yaml to change.
    """
    if run.quantize:
        _check_blocks(params, run)
    _check_holdout(params, run)
    _check_routing(params, run, experts)


def _check_encoder(params: Params, model: str) -> None:
    """Check that a model with an encoder is scored by fidelity alone."""
    if not model_folder.read_config(params.model[model].folder()).get("is_encoder_decoder"):
        return
    if params.evaluate.tasks:
        raise UserError(
            f"evaluate.tasks: model.{model} has an encoder. lm-eval's tasks score the continuation of a text, and do "
            "not define which part of it an encoder reads. Set `tasks: {}`; fidelity is still measured, over the "
            "second half of every held-out sequence"
        )
    if params.evaluate.generation:
        raise UserError(
            f"evaluate.generation: model.{model} has an encoder. Generation is not defined for it: which text does the "
            "encoder read, and with which token does the decoder begin? Leave the section out"
        )


def _check_cluster(params: Params, model: str, cluster: str, layers: Mapping[int, int]) -> None:
    """Check that a grouping fits the layers of a model."""
    chosen = params.cluster[cluster]
    first, last = chosen.bounds()
    inside = {layer: count for layer, count in layers.items() if first <= layer <= last}
    if not inside:
        raise UserError(
            f"cluster.{cluster}.layers: {chosen.layers} contains no MoE layer of {model}. It has "
            f"{', '.join(map(str, layers))}"
        )
    if chosen.share:
        _check_share(params, model, cluster, inside)
        return
    for layer, count in inside.items():
        try:
            kept = layer_sizes.kept_experts(chosen.experts, count)
            if chosen.max_size and kept * chosen.max_size < count:
                raise UserError(f"`max_size: {chosen.max_size}` is too small for {kept} groups of {count} experts")
            least = layer_sizes.measured_experts(count, chosen.max_size)[0]
            if chosen.budget == "error" and kept < least:
                raise UserError(
                    f"{kept} of {count} experts are kept, but `budget: error` measures no layer below {least}. Keep "
                    "more, or set `budget: uniform`"
                )
        except UserError as error:
            raise UserError(f"cluster.{cluster}, layer {layer} of {model}: {error}") from None


def _check_holdout(params: Params, run: Run) -> None:
    """Check that a run whose choices are made on held-out tokens has some."""
    calibrate = params.calibrate[run.calibrate]
    held = heldout_count(calibrate.samples, calibrate.holdout)
    for choice in params.descents(run):
        if why := too_few(held):
            raise UserError(f"{choice} on calibrate.{run.calibrate}: {why}")
    if held:
        return
    chosen, empty = (
        params.cluster[run.cluster],
        f"calibrate.{run.calibrate}.holdout is 0. Set it to a share such as 0.125",
    )
    if chosen.spent() and chosen.budget != "usage":
        raise UserError(f"cluster.{run.cluster} spends its budget by the error on held-out tokens, but {empty}")
    if getattr(params.solve[run.solve], "ridge", None) == "auto":
        raise UserError(
            f"solve.{run.solve}.ridge is auto, which needs held-out sequences, but {empty}, or the ridge to a number"
        )


def _check_parts(params: Params, model: str, refine: str) -> None:
    """Check that the experts of a model have one of the parts that a refine is to fit."""
    folder = params.model[model].folder()
    roles = expert_headers.matrix_roles(expert_headers.read_plain_headers(folder), model_folder.read_config(folder))
    if why := no_part(params.refine[refine].model_dump()["parts"], roles):
        raise UserError(f"refine.{refine} on model.{model}: {why}")


def _check_blocks(params: Params, run: Run) -> None:
    """Check that the blocks of a run's quantization divide the rows of its experts; of a budget, the narrowest's."""
    assert run.quantize
    chosen, options = params.cluster[run.cluster], params.quantize[run.quantize].model_dump()
    model = model_counts(params.model[run.model].folder())
    widths = set(plan.kept_widths(params, run).values())
    if chosen.share is not None:
        widths = {math.gcd(width, chosen.width_multiple) for width in widths}
    for width in sorted(widths):
        if why := misfit(options, {"rows of gate and up": model.hidden, "rows of down": width}):
            raise UserError(f"quantize.{run.quantize} of {run.listed}: {why}")


def _check_files(params: Params) -> None:
    """Check that the local texts and tasks of params.yaml exist."""
    texts = {f"calibrate.{run.calibrate}": params.calibrate[run.calibrate] for run in params.all_runs()}
    for name, wanted in {**texts, "evaluate.heldout": params.evaluate.heldout}.items():
        if wanted.source is not None:
            try:
                check_file(Path(wanted.source))
            except UserError as error:
                raise UserError(f"{name}.source: {error}") from None
    for name, task in params.evaluate.tasks.items():
        check_task(name, task)


def _check_share(params: Params, model: str, cluster: str, inside: Mapping[int, int]) -> None:
    """Check that every layer has a size that a share allows, and a common one if all layers get the same."""
    chosen, sized = params.cluster[cluster], expert_headers.read_expert_sizes(params.model[model].folder())
    assert chosen.share
    found = []
    for layer, count in inside.items():
        width = sized[layer]["width"]
        multiple = math.gcd(width, chosen.width_multiple)
        found.append(set(layer_sizes.measured_sizes(count, width, chosen.share, 0, multiple, chosen.max_size)))
        if not found[-1]:
            raise UserError(
                f"cluster.{cluster}, layer {layer} of {model}: {chosen.share:.3g} of {count} experts of width {width} "
                f"is too small: every group must keep at least {multiple} neurons. Raise `share`, or `max_size` if it "
                "is set, or lower `width_multiple`"
            )
    if chosen.per == "model" and not set.intersection(*found):
        raise UserError(f"cluster.{cluster}, {model}: {NO_SIZE_IN_COMMON}")


def _check_routing(params: Params, run: Run, counts: Mapping[int, int]) -> None:
    """Check a run whose routers lose rows: the result must be a stock model."""
    routing, chosen = params.routing(run.solve), params.cluster[run.cluster]
    if routing == "preserved":
        return
    if chosen.spent():
        spent = "share" if chosen.share else f"budget: {chosen.budget}"
        raise UserError(
            f"{run.name}: with `{spent}`, measurements decide how many experts each layer keeps, but the routing "
            f"is {routing}, and a stock model needs one number that is known before. Set `experts` alone, or choose a "
            "method that keeps the routing"
        )
    config = model_folder.read_config(params.model[run.model].folder())
    first, last = chosen.bounds()
    kept = {layer_sizes.kept_experts(chosen.experts, n) if first <= layer <= last else n for layer, n in counts.items()}
    try:
        if len(kept) > 1:
            raise UserError(
                f"its layers would have {sorted(kept)} experts, but the routing is {routing}, and a stock model has "
                "one number of experts. Set `layers: all`, or choose a method that keeps the routing"
            )
        top_k, groups, top_groups = (
            config_keys.config_top_k(config) or 1,
            config.get("n_group") or 1,
            config.get("topk_group") or 1,
        )
        router_headers.check_router(config["model_type"], routing, kept.pop(), top_k, groups, top_groups)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from None


def experts_of(model: str, params: Params) -> dict[int, int]:
    """Return {layer: N} of a model.

    Raises:
        UserError: if its checkpoint cannot be compressed.
    """
    chosen = params.model[model]
    try:
        folder = chosen.folder()
        validation.check_checkpoint(folder, chosen.dequantize)
        if chosen.average:
            averages.check_alike([Path(path) for path in chosen.average.paths])
        if chosen.revision and not (written := hub_cache.fetch_record_path(chosen.path, chosen.revision)).is_file():
            command = hub_cache.fetch_command(chosen.path, chosen.revision)
            raise UserError(f"{written}, the record of the fetched files, is missing. Run `{command}`")
        return expert_headers.count_experts(folder)
    except UserError as error:
        raise UserError(f"model.{model}: {error}") from None
