"""Put solved layers into a model in memory, like compressed/assemble.py into a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergemoe.compressed import stock
from mergemoe.compressed.model_config import compact_config, module_facts
from mergemoe.compressed.modeling import merged_class, shrink_experts
from mergemoe.models.families import stacked_parameter
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import LayerLayout, ModelLayout
from mergemoe.moe.packing import Stacking
from mergemoe.moe.solved import compact_experts

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
        model.config.mergemoe, model.config.auto_map = changed["mergemoe"], changed["auto_map"]
        model.__class__ = merged_class(described["architecture"])


def _stay_stock(model: Any, entries: list[LayerLayout], solved: Solved, config: Mapping[str, Any]) -> None:
    """Replace experts and router of every MoE block by stock modules of the new shapes."""
    smaller = stock.empty_model(config)
    for entry in entries:
        tensors = solved[entry["layer"]]
        compact = compact_experts(experts_of(model, entry), tensors)
        router = {"weight": tensors.get("router"), "e_score_correction_bias": tensors.get("router_bias")}
        names = [entry["module"], *([entry["router"]["module"]] if "router" in tensors else [])]
        for name in names:
            old, new = model.get_submodule(name), smaller.get_submodule(name)
            like = next(old.parameters())
            new.to(like.dtype).to_empty(device=like.device)
            new.train(old.training)
            for module in new.modules():
                if hasattr(module, "config"):
                    module.config = model.config.get_text_config()
            if name == entry["module"]:
                _fill(new, entry, compact)
            else:
                for key, tensor in new.state_dict().items():
                    tensor.copy_(router[key])
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    old_text, new_text = model.config.get_text_config(), smaller.config.get_text_config()
    for key, value in new_text.to_dict().items():
        if key in stock.EDITED and getattr(old_text, key, None) != value:
            setattr(old_text, key, value)


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
