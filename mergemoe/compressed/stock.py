"""Find out whether stock code can load a compressed model, and with which config.json.

It can if all MoE layers keep the same number of experts with as many router rows, or the same number of neurons. The
stock model is built without memory for its weights, and its shapes are compared with the wanted ones.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import init_empty_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergemoe.checkpoints.config_keys import CONFIG_KEYS
from mergemoe.compressed.model_config import role_shape
from mergemoe.errors import UserError
from mergemoe.models.families import model_class
from mergemoe.moe.layout_types import LayerLayout, ModelLayout
from mergemoe.moe.packing import Stacking

Shapes = dict[str, list[int]]

WIDTHS = CONFIG_KEYS["width"]
SHARED = "n_shared_experts"  # deepseek gives the width of its shared experts in widths of a routed one
EDITED = {*CONFIG_KEYS["experts"], *WIDTHS, SHARED}


def empty_model(config: Mapping[str, Any]) -> Any:
    """Return the stock model of a configuration, its parameters on the meta device."""
    made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    with init_empty_weights(include_buffers=True):
        return model_class(made)._from_config(made, dtype=made.dtype, experts_implementation="eager").eval()


def saved_shapes(model: Any) -> Shapes:
    """Return {name: shape} of the tensors that a model saves."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def changed_shapes(entry: LayerLayout, kept: int, width: int, rows: bool) -> Shapes:
    """Return the shapes of one layer's tensors with M experts of I' neurons; `rows`: the router has M rows, too."""
    new: Shapes = {}
    for role, facts in entry["roles"].items():
        whole = Stacking(**facts["held"]).shape(role_shape(entry, role, kept, width))
        name = f"{entry['module']}.{facts['parameter']}"
        if "{}" in name:
            new |= {name.format(expert): whole[1:] for expert in range(kept)}
        else:
            new[name] = [whole[0] + facts["spare"], *whole[1:]]
    if rows:
        router = entry["router"]["module"]
        new[f"{router}.weight"] = [kept, entry["hidden_size"]]
        if "router_bias" in entry["router"]["keys"]:
            new[f"{router}.e_score_correction_bias"] = [kept]
    return new


def choose_config(
    config: Mapping[str, Any],
    layout: ModelLayout,
    sizes: Mapping[int, tuple[int, int]],
    rerouted: Mapping[int, bool],
) -> dict[str, Any] | None:
    """Return the stock configuration of a compressed model; None if it needs the compact format.

    Args:
        config: the original's, as config.json has it.
        layout: what layout.layout_of_model returned.
        sizes: {layer: (M, I')} of the layers that changed.
        rerouted: {layer: whether its router has M rows}.

    Raises:
        UserError: if routers lost rows and there is no stock configuration: the compact format keeps all rows.
    """
    entries = {entry["layer"]: entry for entry in layout["layers"]}
    if not any(rerouted.values()) and any(kept < entries[layer]["experts"] for layer, (kept, _) in sizes.items()):
        return None
    found = None
    if len(set(sizes.values())) == 1 and sizes.keys() == entries.keys() and len(set(rerouted.values())) == 1:
        ((kept, width),) = set(sizes.values())
        changes: Shapes = {}
        for layer, entry in entries.items():
            changes |= changed_shapes(entry, kept, width, rerouted[layer])
        found = find_config(config, changes, kept, width)
    if found is None and any(rerouted.values()):
        raise UserError(
            f"the routers have fewer rows, and {layout['architecture']} has no configuration for these layers: "
            f"{{layer: (experts, width)}} {dict(sizes)} of {sorted(entries)}. All MoE layers must keep the same "
            "number of experts: set `layers: all` in `cluster`, or take a method that keeps the routing"
        )
    if found is None:
        logging.getLogger(__name__).warning(
            "%s has no configuration for experts of these widths: {layer: (experts, width)} %s. The checkpoint is "
            "written in the compact format, which needs trust_remote_code or this package",
            layout["architecture"], dict(sizes),
        )  # fmt: skip
    return found


def find_config(config: Mapping[str, Any], changes: Shapes, kept: int, width: int) -> dict[str, Any] | None:
    """Return the configuration with which stock code has the changed shapes and no others; None if there is none.

    Args:
        config: the original's, as config.json has it.
        changes: changed_shapes of all layers together.
        kept: M of every layer.
        width: I' of every layer.
    """
    expected = saved_shapes(empty_model(config)) | changes
    for edit in _edits(config, kept, width):
        if saved_shapes(empty_model(edit)) == expected:
            return edit
    return None


def _edits(config: Mapping[str, Any], kept: int, width: int) -> Iterator[dict[str, Any]]:
    text = config.get("text_config") or config
    counts = {name: kept for name in CONFIG_KEYS["experts"] if isinstance(text.get(name), int)}
    widths: list[dict[str, int]] = [{}, *({name: width} for name in WIDTHS if isinstance(text.get(name), int))]
    shared: list[dict[str, int]] = [{}]
    if isinstance(old := text.get("moe_intermediate_size"), int) and isinstance(text.get(SHARED), int):
        number, rest = divmod(text[SHARED] * old, width)
        shared += [{SHARED: number}] if rest == 0 else []
    for parts in itertools.product(widths, shared):
        change = counts | parts[0] | parts[1]
        yield {**config, **change} if text is config else {**config, "text_config": {**text, **change}}
