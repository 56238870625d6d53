"""Compress a model that is in memory: the workflow's own functions, layer by layer, without its files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergemoe import budget, cluster, layout
from mergemoe.calls import Recorder
from mergemoe.capture import batches_of, run_batches
from mergemoe.compact import compact_config, module_facts
from mergemoe.errors import UserError
from mergemoe.families import parameter_of
from mergemoe.features import Activation
from mergemoe.forward import Forward
from mergemoe.modeling import merged_class, shrink_experts
from mergemoe.profile import profile
from mergemoe.progress import Progress
from mergemoe.solve import compact_experts, solve
from mergemoe.stacking import Stacking
from mergemoe.stream import ResidentModel
from mergemoe.text import heldout_rows
from mergemoe.tokens import Remembered
from mergemoe.weights import Experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMMENDED = {"method": "mergemoe"}


@torch.no_grad()
def compress(
    model: "PreTrainedModel",
    tokens: Tensor | Mapping[str, Tensor],
    experts: int | float = 0.5,
    method: str = "recommended",
    layers: str | Sequence[int] = "all",
    seed: int = 0,
    holdout: float = 0.125,
    batch_tokens: int = 16384,
    **options: Any,
) -> "PreTrainedModel":
    """Merge the experts of a model in place, and return it.

    On a CPU, at equal dtype, batches and threads, the weights are the workflow's, bit for bit.

    Args:
        model: a transformers model; its class becomes a subclass of what it was.
        tokens: ids [S, L], or a mapping with `input_ids` and, where there is padding, `attention_mask`.
        experts: an int is the number kept per layer, a float in (0, 1] the share, rounded up.
        method: a method of `solve` in params.yaml.
        layers: "all", or the numbers of the decoder layers to merge.
        seed: draws the sequences that are never fitted on.
        holdout: their share.
        batch_tokens: tokens of one forward batch.
        options: of the method, as in params.yaml.

    Raises:
        UserError: where the model's experts cannot be merged, with the reason, before anything is computed.
    """
    if hasattr(model.config, "mergemoe"):
        raise UserError("this model is compressed already: start from the original, and choose `experts` smaller")
    described = layout.of_model(model)
    chosen = _chosen(described, layers, experts)
    given = tokens if isinstance(tokens, Mapping) else {"input_ids": tokens}
    ids = given["input_ids"]
    mask = given["attention_mask"] if "attention_mask" in given else torch.ones_like(ids)
    heldout = torch.tensor(heldout_rows(len(ids), holdout, seed))
    settings = RECOMMENDED if method == "recommended" else {"method": method}
    kernel = model.config._experts_implementation
    resident = ResidentModel(model)
    batches = batches_of(ids, mask, batch_tokens, model.device)
    _set_kernel(model, "eager")  # as the workflow runs it
    try:
        forward = Forward(resident, batches)
        progress = Progress("batches through layers", described["decoder_layers"] * len(batches))
        solved = {}
        for i, layer in forward.layers():
            entry = next((e for e in described["layers"] if e["layer"] == i and i in chosen), None)
            recorder = Recorder(model, entry) if entry else None
            rows = []
            for called in run_batches(layer, i, forward, recorder):
                rows.append(called)
                progress.step()
            if entry and recorder:
                recorder.remove()
                solved[i] = _solve_layer(model, entry, chosen[i], Remembered(rows, heldout), {**settings, **options})
    finally:
        _set_kernel(model, kernel)
    facts = {}
    for entry in described["layers"]:
        if entry["layer"] in solved:
            facts[entry["module"]] = _replace(model, entry, solved[entry["layer"]])
    if facts:
        stock = described["architecture"]
        for key, value in compact_config(model.config.to_dict(), stock, facts).items():
            if key in {"mergemoe", "auto_map"}:
                setattr(model.config, key, value)
        model.__class__ = merged_class(stock)
    return model


def _chosen(described: Mapping[str, Any], layers: str | Sequence[int], experts: int | float) -> dict[int, int]:
    """Return {layer: M} of the layers that lose experts."""
    counts = {entry["layer"]: entry["experts"] for entry in described["layers"]}
    wanted = counts if layers == "all" else {int(layer) for layer in layers}
    if missing := set(wanted) - set(counts):
        raise UserError(f"layers {sorted(missing)} hold no experts; those that do: {', '.join(map(str, counts))}")
    kept = {layer: budget.kept_experts(experts, counts[layer]) for layer in sorted(wanted)}
    return {layer: m for layer, m in kept.items() if m < counts[layer]}


def _set_kernel(model: Any, kernel: str | None) -> None:
    if kernel and model._can_set_experts_implementation():
        model.set_experts_implementation(kernel)


def _experts(model: Any, entry: Mapping[str, Any]) -> Experts:
    """Return the experts that a module holds, where it can be as views of its parameters."""
    module = model.get_submodule(entry["module"])
    roles = {}
    for role, facts in entry["roles"].items():
        whole = parameter_of(module, facts["parameter"], entry["experts"])
        roles[role] = Stacking(**facts["held"]).view(whole[: len(whole) - facts["spare"]], entry["experts"])
    norm = module.post_expert_norm.weight.detach().expand(entry["experts"], -1) if entry["norm"] else None
    return Experts(**roles, norm=norm)


def _solve_layer(
    model: Any, entry: Mapping[str, Any], kept: int, tokens: Remembered, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    experts, act = _experts(model, entry), Activation(**entry["activation"])
    usage = profile(tokens, experts, act)["usage"]
    expert_map, _ = cluster.by_weights(experts, usage, kept)
    return solve(experts, expert_map, usage, tokens, act, **settings)[0]


def _replace(model: Any, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put the merged experts in a module's place; return what its configuration says of it."""
    module = model.get_submodule(entry["module"])
    compact = compact_experts(_experts(model, entry), tensors)
    old = {name: parameter.detach() for name, parameter in module.named_parameters()}
    facts = module_facts(entry, len(compact), entry["width"])
    shrink_experts(module, facts)
    for role, matrices in compact.roles().items():
        where = entry["roles"][role]
        if "{}" in where["parameter"]:
            for expert, matrix in enumerate(matrices):
                module.get_parameter(where["parameter"].format(expert)).data.copy_(matrix)
            continue
        new, spare = module.get_parameter(where["parameter"]).data, where["spare"]
        Stacking(**where["held"]).view(new[: len(new) - spare], len(compact)).copy_(matrices)
        if spare:
            new[len(new) - spare :] = old[where["parameter"]][-spare:]
    identity = torch.arange(len(compact), len(compact) + entry["identity"])
    buffer = module.get_buffer(entry["expert_map"]["buffer"])
    buffer.copy_(torch.cat([tensors["expert_map"], identity]))
    return facts
