"""The configuration of a compressed model."""

from collections.abc import Mapping
from typing import Any

from mergemoe.models.families import auto_class
from mergemoe.moe.layout_types import LayerLayout
from mergemoe.moe.packing import Stacking

FORMAT = 1


def module_facts(entry: LayerLayout, kept: int, width: int) -> dict[str, Any]:
    """Return the facts about one module that modeling.shrink_experts needs.

    Args:
        entry: the layer of a layout.
        kept: M, its experts now.
        width: I', the neurons of each.
    """
    parameters = {}
    for role, facts in entry["roles"].items():
        whole = Stacking(**facts["held"]).shape(role_shape(entry, role, kept, width))
        parameters[facts["parameter"]] = [whole[0] + facts["spare"], *whole[1:]]
    return {
        "experts": [entry["experts"], kept],
        "width": [entry["width"], width],
        "parameters": parameters,
        "expert_map": {entry["expert_map"]["buffer"]: entry["experts"] + entry["identity"]},
    }


def role_shape(entry: LayerLayout, role: str, kept: int, width: int) -> list[int]:
    """Return the shape of one role, [E, I, H] and so on, with `kept` experts of `width` neurons."""
    shape = [kept, *entry["roles"][role]["shape"][1:]]
    if role != "down_bias":
        shape[2 if role == "down" else 1] = width
    return shape


def compact_config(config: Mapping[str, Any], architecture: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a compressed model; without merged modules it is the stock configuration.

    Args:
        config: the content of config.json.
        architecture: the stock class.
        facts: {name of a merged module: module_facts}.
    """
    if not facts:
        return dict(config)
    auto_map = {auto_class(architecture): f"modeling_mergemoe.MergeMoe{architecture}"}
    return {**config, "mergemoe": {"format": FORMAT, "experts": dict(facts)}, "auto_map": auto_map}
