"""The model card of what `mergemoe.compress` made, which `mergemoe.save` writes beside the weights."""

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints.license import stated_license
from mergemoe.compressed.checkpoint_card import unscored_card

ATTRIBUTE = "mergemoe_card"  # of a model


def attach_card(model: Any, stock: bool, stages: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a compressed model the text of its card.

    Args:
        model: it.
        stock: whether transformers loads it without code of ours.
        stages: {stage: parameters}, without the model's.
    """
    path = model.name_or_path or type(model).__name__
    revision = None if Path(path).is_dir() else getattr(model.config, "_commit_hash", None)
    original = {"name": Path(path).name, "path": path, **({"revision": revision} if revision else {})}
    license = stated_license(Path(path)) if Path(path, "config.json").is_file() else {}
    plain = {stage: _plain(parameters) for stage, parameters in stages.items()}
    card = unscored_card({"model": original, **plain}, stock, made_by="`mergemoe.compress`", **license)
    setattr(model, ATTRIBUTE, card)


def _plain(value: Any) -> Any:
    """Return a value with Python's own numbers in place of numpy's, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value
