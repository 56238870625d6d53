"""Save a model as a checkpoint folder that can be loaded."""

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from mergemoe.artifacts.atomic import atomic
from mergemoe.artifacts.writing import writing
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.carried_files import carry_files, without_code
from mergemoe.checkpoints.config_keys import UNREAD_LAYERS
from mergemoe.checkpoints.quantization import quantization_settings
from mergemoe.compressed import memory_card
from mergemoe.compressed.config_spelling import in_old_keys
from mergemoe.compressed.loading import check_path
from mergemoe.compressed.model_config import compact_class
from mergemoe.compressed.modeling import merged_class
from mergemoe.errors import UserError
from mergemoe.models.completeness import check_stored
from mergemoe.models.families import model_class
from mergemoe.models.layered_model import empty_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(model: "PreTrainedModel", path: str | Path) -> None:
    """Write a checkpoint folder that `load` and trust_remote_code read, with a card and the model's own tokenizer.

    It is written beside `path` and then renamed, so that a save that fails leaves no folder.

    Raises:
        UserError: if the folder exists, its place is full, read-only or forbidden, or the model's tensors are not those
            that its configuration asks for: it was cut, tied or given parameters by hand.
    """
    check_path(path)
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists. save writes a new folder: choose another path")
    with writing(), atomic(path) as temporary:
        model.save_pretrained(temporary)
        _write_config(model, temporary / "config.json")
        if card := getattr(model, memory_card.ATTRIBUTE, None):
            (temporary / "README.md").write_text(card, encoding="utf-8")
        carry_files(Path(model.name_or_path or "nowhere"), temporary)
        _check_saved(temporary)
    if not list(path.glob("tokenizer*")):
        warnings.warn(
            f"{path} has no tokenizer, because the model does not come from a folder that has one "
            f"({model.name_or_path!r}). Save yours there: tokenizer.save_pretrained({str(path)!r})",
            stacklevel=2,
        )


def _check_saved(folder: Path) -> None:
    """Check that what was written can be loaded: from headers alone, and only if no quantizer stands between."""
    settings = model_folder.read_config(folder)
    if quantization_settings(settings):
        return
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    cls = merged_class(compact_class(folder, settings)) if "mergemoe" in settings else model_class(config)
    try:
        check_stored(empty_of(cls, config), model_folder.read_headers(folder), folder)
    except UserError as error:
        fact = str(error).partition(". ")[0].replace(str(folder), "what was written")
        raise UserError(
            f"the model does not fit its own configuration, so nothing was saved, as it could not be loaded: {fact}. "
            "Layers, heads or parameters were cut, tied or added by hand. Bring model.config into line with them, or "
            "save the model as it was loaded"
        ) from None


def _write_config(model: Any, path: Path) -> None:
    """Write config.json again without names of code, and in the original's keys, if the original is on this machine."""
    saved = json.loads(path.read_bytes())
    try:
        raw, _ = transformers.PretrainedConfig.get_config_dict(model.name_or_path or "nowhere", local_files_only=True)
    except (OSError, ValueError):  # made in memory, or moved since
        raw = {}
    found = without_code(in_old_keys(model.config, raw) or saved)
    if "mergemoe" in saved:
        found["auto_map"] = saved["auto_map"]  # of the compact format, whose code is written
    for part in (found, found.get("text_config")):
        for key in UNREAD_LAYERS:
            if isinstance(part, dict) and part.get(key):  # transformers reads no such layer, so none was written
                part[key] = 0
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
