"""Compress a model in memory with the functions of the workflow, layer by layer, without its files."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergemoe.calibration.capture import batches_of, run_batches
from mergemoe.calibration.hooks import Recorder
from mergemoe.calibration.open_layer import OpenLayer
from mergemoe.calibration.profile import profile_layer
from mergemoe.compressed import memory_card
from mergemoe.compressed.replace import experts_of, replace_layers, round_rest
from mergemoe.compressed.request import addition_arguments, arguments, attached, token_arguments
from mergemoe.errors import UserError
from mergemoe.grouping import cluster
from mergemoe.grouping.quick_search import usual_search
from mergemoe.merging.solve import solve
from mergemoe.methods import catalogue
from mergemoe.models import layout
from mergemoe.models.layered_model import ResidentModel
from mergemoe.models.layerwise_forward import LayerwiseForward
from mergemoe.moe.layout_types import LayerLayout
from mergemoe.moe.router_rule import Router, layer_router
from mergemoe.moe.tokens import Remembered
from mergemoe.progress import Progress
from mergemoe.quantization.quantize import quantize as quantize_layer
from mergemoe.reconstruction.refine import refine as refine_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def compress(
    model: "PreTrainedModel",
    tokens: Tensor | Mapping[str, Tensor],
    experts: int | float | None = None,
    method: str = "recommended",
    layers: str | Sequence[int] = "all",
    seed: int = 0,
    holdout: float = 0.125,
    batch_tokens: int = 16384,
    refine: str | Mapping[str, Any] | None = None,
    by: str | None = None,
    max_size: int | None = None,
    search: str | None = None,
    quantize: Mapping[str, Any] | None = None,
    **options: Any,
) -> "PreTrainedModel":
    """Merge the experts of a model in place, and return it.

    On a CPU, at equal dtype, batches and threads, the weights are the workflow's, bit for bit.

    Hooks that are registered on modules stay. What would be lost or go on computing with the old experts is refused:
    hooks of accelerate, parametrized or tied weights, adapters, compiled modules, hooks on gradients.

    Args:
        model: a transformers model; its class becomes a subclass of what it was.
        tokens: ids [S, L], or a mapping with `input_ids` and, if there is padding, `attention_mask`, as a
            tokenizer returns with return_tensors="pt".
        experts: an int is the number kept per layer, a float in (0, 1] the share, rounded up; the default is half of
            them, or all if the method (`slim`) keeps all.
        method: a method of `solve` in params.yaml; recommended is `select`.
        layers: "all", a range such as "28-47", or the numbers of the decoder layers to merge.
        seed: draws the sequences that are held out from every fit.
        holdout: their share.
        batch_tokens: tokens of one forward batch.
        refine: "auto", or keys of a `refine` choice in params.yaml: then gate, up and down of the merged experts are
            fitted to each layer's original output, after the method. None: they are not.
        by: how experts are grouped, as in `cluster` of params.yaml; None: by the first of the method's groupings, or by
            saliency if the router is pruned.
        max_size: most experts of a group; None: any number.
        search: full or quick, how groups by selection are found; None: quick for layers of 32 experts or more.
        quantize: keys of a `quantize` choice in params.yaml: last, the experts of these layers are rounded to the
            values of a format, and other matrices to that of `rest`, in the model's dtype. None: they are not.
        options: of the method, as in params.yaml (docs/method.md lists them).

    Raises:
        UserError: if the model's experts cannot be merged or an argument is wrong, before anything is computed.
    """
    arguments.check_mode(batch_tokens)
    if hasattr(getattr(model, "config", None), "mergemoe"):
        raise UserError("this model is compressed already. Start from the original, with a smaller `experts`")
    arguments.stock_class(model)
    attached.check_attached(model)
    described = layout.layout_of_model(model)
    method = arguments.method_name(method)
    options = arguments.method_options(method, options)
    routing = catalogue.routing(method, options)
    rounded = addition_arguments.quantize_options(quantize)
    kept = arguments.kept_by_layer(described, layers, experts, method, options, all_layers=rounded is not None)
    grouping = arguments.grouping_options(described, kept, method, options, by, max_size, search)
    config = arguments.stock_config(model, described, kept, options, routing)
    ids, mask = token_arguments.ids_and_mask(tokens, _vocabulary(model))
    heldout = token_arguments.heldout_sequences(len(ids), holdout, seed)
    refined = addition_arguments.refine_options(refine, routing)
    descends = refined is not None or (rounded is not None and rounded["by"] == "descent")
    token_arguments.check_sequences(method, options.get("ridge", 0.0), descends, heldout, mask.any(1))
    if refined:
        addition_arguments.check_parts(described, refined["parts"])
    if rounded:
        addition_arguments.check_blocks(described, rounded, options)
    resident = ResidentModel(model)
    batches = batches_of(ids, mask, batch_tokens, model.device)
    print(arguments.summary(described, kept, method, refined), file=sys.stderr)
    with _workflow_settings(model):
        forward = LayerwiseForward(resident, batches)
        progress = Progress("batches through layers", described["decoder_layers"] * len(batches))
        solved = {}
        for i, layer in forward.layers():
            entry = next((e for e in described["layers"] if e["layer"] == i and i in kept), None)
            recorder = Recorder(model, entry) if entry else None
            rows = []
            try:
                for called in run_batches(layer, i, forward, recorder):
                    rows.append(called)
                    progress.step()
            finally:
                if recorder:
                    recorder.remove()
            if entry:
                solved[i] = _solve_layer(
                    model, entry, kept[i], Remembered(rows, heldout), grouping, method, options, refined, rounded
                )
    replace_layers(model, described, solved, config)
    if rounded:
        round_rest(model, rounded["rest"])
    if kept:
        chosen = {"calibrate": {"sequences": list(ids.shape), "seed": seed, "holdout": holdout}}
        chosen["cluster"] = {**grouping, "experts": kept if len(set(kept.values())) > 1 else min(kept.values())}
        chosen["solve"] = {"method": method, **options}
        added = {"refine": refined, "quantize": rounded}
        chosen |= {stage: keys for stage, keys in added.items() if keys}
        memory_card.attach_card(model, config is not None, chosen)
    return model


def _vocabulary(model: Any) -> int:
    return len(model.get_input_embeddings().weight)


@contextmanager
def _workflow_settings(model: Any) -> Iterator[None]:
    """Run as the workflow does: without dropout and autocast, experts one by one; restore all after."""
    training = [module for module in model.modules() if module.training]
    device = model.device.type
    kernel = model.config._experts_implementation
    model.eval()
    _set_kernel(model, "eager")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        _set_kernel(model, kernel)
        for module in training:
            module.training = True


def _set_kernel(model: Any, kernel: str | None) -> None:
    if kernel and model._can_set_experts_implementation():
        model.set_experts_implementation(kernel)


def _solve_layer(
    model: Any,
    entry: LayerLayout,
    kept: int,
    tokens: Remembered,
    grouping: Mapping[str, Any],
    method: str,
    options: Mapping[str, Any],
    refined: Mapping[str, Any] | None,
    rounded: Mapping[str, Any] | None,
) -> dict[str, Tensor]:
    layer = OpenLayer(entry, experts_of(model, entry), tokens)
    profiled = profile_layer(tokens, layer.experts, layer.act)
    width = catalogue.kept_width(options, entry["width"])
    routing = catalogue.routing(method, options)
    how = {**grouping, "search": grouping["search"] or usual_search(entry["experts"])}
    groups = entry["router"]["groups"]
    expert_map = cluster.group_experts(
        kept=kept, problem=layer.problem(), profiled=profiled, width=width, router_groups=groups, **how
    ).expert_map
    router = None if routing == "preserved" else _router(model, entry)
    usage = profiled["usage"]
    solved = solve(layer.experts, expert_map, usage, tokens, layer.act, router=router, method=method, **options)[0]
    if refined:
        solved = refine_layer(layer.experts, solved, tokens, layer.act, router=router, **refined)[0]
    if rounded:
        solved = quantize_layer(layer.experts, solved, tokens, layer.act, router=router, **rounded)[0]
    return solved


def _router(model: Any, entry: LayerLayout) -> Router:
    found = model.get_submodule(entry["router"]["module"]).state_dict()
    tensors = {"router": found["weight"], "router_bias": found.get("e_score_correction_bias")}
    return layer_router(entry, {name: tensor for name, tensor in tensors.items() if tensor is not None})
