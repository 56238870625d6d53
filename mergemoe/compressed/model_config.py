"""The configuration of a compressed model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from mergemoe.errors import UserError
from mergemoe.models.families import auto_class, auto_classes
from mergemoe.moe.layout_types import LayerLayout
from mergemoe.moe.packing import Stacking

FORMAT = 2  # 1 named the stock class in auto_map alone
_DAMAGED = "config.json is damaged or belongs to another checkpoint. Use the whole checkpoint as it was written"


def compact_class(path: str | Path, settings: Mapping[str, Any]) -> str:
    """Return the stock class that a compact checkpoint is made from.

    Args:
        path: the folder, named in messages.
        settings: its config.json, which has the key `mergemoe`.

    Raises:
        UserError: config.json has a newer format, or is not what compact_config writes.
    """
    compact = settings["mergemoe"] or {}
    number, facts = compact.get("format"), compact.get("experts")
    if type(number) is not int or number < 1:
        raise UserError(f"{path} has format {number!r}, which must be a whole number. {_DAMAGED}")
    if number > FORMAT:
        raise UserError(f"{path} has format {number}; this version reads up to {FORMAT}. Update mergemoe")
    if not isinstance(facts, dict) or not facts:
        raise UserError(f"{path}: config.json lists no experts under `mergemoe`. {_DAMAGED}")
    if wrong := [name for name, each in facts.items() if not _is_whole(each)]:
        raise UserError(f"{path}: config.json states no sizes for {wrong[0][:200]} that fit together. {_DAMAGED}")
    name = compact.get("class") if number > 1 else _in_auto_map(settings.get("auto_map") or {})
    if not isinstance(name, str) or not isinstance(getattr(transformers, name, None), type):
        raise UserError(f"{path}: config.json names no class of transformers that was compressed. {_DAMAGED}")
    auto_class(name)
    return name


def _in_auto_map(auto_map: Mapping[str, Any]) -> str | None:
    texts = [name for name in auto_map.values() if isinstance(name, str)]
    return next((name.rpartition(".MergeMoe")[2] for name in texts if ".MergeMoe" in name), None)


def _is_whole(facts: Any) -> bool:
    """Return whether the facts of one module have the form of module_facts, and numbers of experts."""
    try:
        (before, after), (_, _), ((_, length),) = facts["experts"], facts["width"], facts["expert_map"].items()
        shapes = facts["parameters"].values()
        numbers = [*facts["experts"], *facts["width"], length, *(size for shape in shapes for size in shape)]
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return all(type(number) is int and number > 0 for number in numbers) and after <= before <= length


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
    return {
        **config,
        "architectures": [f"MergeMoe{architecture}"],  # a program with its own code for the stock class must not use it
        "auto_map": {auto: f"modeling_mergemoe.MergeMoe{name}" for auto, name in auto_classes(architecture).items()},
        "mergemoe": {"format": FORMAT, "class": architecture, "experts": dict(facts)},
    }
