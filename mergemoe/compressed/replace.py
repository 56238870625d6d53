"""Put solved layers into a model in memory, like compressed/assemble.py into a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from mergemoe.compressed import stock
from mergemoe.compressed.model_config import compact_config, module_facts
from mergemoe.compressed.modeling import merged_class, shrink_experts
from mergemoe.models.families import stacked_parameter
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import LayerLayout, ModelLayout
from mergemoe.moe.packing import Stacking
from mergemoe.moe.solved import compact_experts
from mergemoe.quantization import other_matrices
from mergemoe.quantization.grids import rounded_blocks

Solved = Mapping[int, Mapping[str, Tensor]]


def experts_of(model: Any, entry: LayerLayout) -> Experts:
    """Return the experts of a module, as views of its parameters if possible."""
    module = model.get_submodule(entry["module"])
    roles = {}
    for role, facts in entry["roles"].items():
        whole = stacked_parameter(module, facts["parameter"], entry["experts"])
        roles[role] = Stacking(**facts["held"]).view(whole[: len(whole) - facts["spare"]], entry["experts"])
    norm = module.post_expert_norm.weight.detach().expand(entry["experts"], -1) if entry["norm"] else None
    return Experts(**roles, norm=norm)


def replace_layers(model: Any, described: ModelLayout, solved: Solved, config: Mapping[str, Any] | None) -> None:
    """Replace the experts of solved layers, and the routers of those whose routing changed.

    Args:
        model: a stock model; it stays one, or gets the class of a compact one.
        described: its layout.
        solved: {layer: tensors of solve.solve}.
        config: of the stock model that it becomes (stock.choose_config); None if it becomes a compact one.
    """
    entries = [entry for entry in described["layers"] if entry["layer"] in solved]
    if config:
        _stay_stock(model, entries, solved, config)
        return
    facts = {entry["module"]: _make_compact(model, entry, solved[entry["layer"]]) for entry in entries}
    if facts:
        changed = compact_config(model.config.to_dict(), described["architecture"], facts)
        for key in ("architectures", "auto_map", "mergemoe"):
            setattr(model.config, key, changed[key])
        model.__class__ = merged_class(described["architecture"])
        _CAN_RECORD_REGISTRY[model] = model._can_record_outputs  # transformers keeps it by class


def round_rest(model: Any, rest: str) -> None:
    """Round the matrices of a model outside its experts to the values of a format of GGUF, unless it is none."""
    if rest == other_matrices.NONE:
        return
    parameters = dict(model.named_parameters())
    headers = {name: {"dtype": "F32", "bytes": 1, "shape": list(part.shape)} for name, part in parameters.items()}
    for name in other_matrices.other_matrices(headers, model.config.to_dict()):
        parameters[name].data.copy_(rounded_blocks(parameters[name].detach(), rest))


def _stay_stock(model: Any, entries: list[LayerLayout], solved: Solved, config: Mapping[str, Any]) -> None:
    """Give experts and router of every MoE block the new shapes."""
    smaller = stock.empty_model(config)
    for entry in entries:
        tensors = solved[entry["layer"]]
        compact = compact_experts(experts_of(model, entry), tensors)
        experts = model.get_submodule(entry["module"])
        _resize(experts, smaller.get_submodule(entry["module"]))
        _fill(experts, entry, compact)
        if "router" in tensors:
            router, name = model.get_submodule(entry["router"]["module"]), entry["router"]["module"]
            _resize(router, smaller.get_submodule(name))
            rows = {"weight": tensors["router"], "e_score_correction_bias": tensors.get("router_bias")}
            for key, tensor in router.state_dict().items():
                tensor.copy_(rows[key])
    old_text, new_text = model.config.get_text_config(), smaller.config.get_text_config()
    changes = {}
    for key, value in new_text.to_dict().items():
        if key in stock.EDITED and (before := getattr(old_text, key, None)) != value:
            changes[before] = value
            setattr(old_text, key, value)
    for name, new in smaller.named_modules():  # such as the number of experts that the auxiliary loss counts
        old = model.get_submodule(name)
        for key, value in vars(new).items():
            before = getattr(old, key, None)
            if type(value) is type(before) is int and before != value and changes.get(before) == value:
                setattr(old, key, value)


def _resize(old: Any, new: Any) -> None:
    """Give a module the shapes and sizes of a smaller one of its class, to be filled; the module and its hooks stay."""
    for name in old._modules.keys() - new._modules.keys():
        del old._modules[name]
    for name, child in new._modules.items():
        if child is not None:
            _resize(old._modules[name], child)
    for held, wanted in ((old._parameters, new._parameters), (old._buffers, new._buffers)):
        for name, tensor in wanted.items():
            if tensor is not None:
                before = held[name]
                same = before.shape == tensor.shape
                now = before.detach().clone() if same else before.detach().new_empty(tensor.shape)
                held[name] = torch.nn.Parameter(now, before.requires_grad) if held is old._parameters else now
    for key, value in vars(new).items():
        if type(value) is int and not key.startswith("_"):
            setattr(old, key, value)


def _make_compact(model: Any, entry: LayerLayout, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put the merged experts into a module; return its entry of the configuration."""
    module = model.get_submodule(entry["module"])
    compact = compact_experts(experts_of(model, entry), tensors)
    old = {name: parameter.detach() for name, parameter in module.named_parameters()}
    facts = module_facts(entry, len(compact), compact.up.shape[1])
    shrink_experts(module, facts)
    _fill(module, entry, compact)
    for where in entry["roles"].values():
        if spare := where["spare"]:
            new, before = module.get_parameter(where["parameter"]).data, old[where["parameter"]][-spare:]
            new[len(new) - spare :] = before if before.shape[1:] == new.shape[1:] else 0
    identity = torch.arange(len(compact), len(compact) + entry["identity"])
    buffer = module.get_buffer(entry["expert_map"]["buffer"])
    buffer.copy_(torch.cat([tensors["expert_map"], identity]))
    return facts


def _fill(module: Any, entry: LayerLayout, compact: Experts) -> None:
    for role, matrices in compact.roles().items():
        where = entry["roles"][role]
        if "{}" in where["parameter"]:
            for expert, matrix in enumerate(matrices):
                module.get_parameter(where["parameter"].format(expert)).data.copy_(matrix)
            continue
        new = module.get_parameter(where["parameter"]).data
        Stacking(**where["held"]).view(new[: len(new) - where["spare"]], len(compact)).copy_(matrices)
