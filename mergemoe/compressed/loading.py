"""Load a compressed or a stock checkpoint, and save a model as one."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mergemoe.artifacts.atomic import atomic
from mergemoe.artifacts.writing import writing
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.carried_files import carry_files, without_code
from mergemoe.checkpoints.config_keys import CONFIG_KEYS, config_values
from mergemoe.checkpoints.expert_headers import predicting_layers
from mergemoe.checkpoints.quantization import quantization_settings
from mergemoe.checkpoints.unmerged_parts import check_adapter, check_names
from mergemoe.checkpoints.validation import check_generation, check_stored_types, check_top_k
from mergemoe.compressed import memory_card
from mergemoe.compressed.config_spelling import in_old_keys
from mergemoe.compressed.model_config import compact_class
from mergemoe.compressed.modeling import merged_class
from mergemoe.errors import UserError, in_short, naming, shown
from mergemoe.models.completeness import check_order
from mergemoe.models.families import model_class
from mergemoe.models.tied_weights import check_held_ties

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    deduplicate: bool = False,
) -> "PreTrainedModel":
    """Return the model of a checkpoint folder, ready for inference.

    It checks that the files fit together, not that they are those of a run: a provenance.json beside them is not read,
    because one may edit config.json or the card, and hashing the weights takes longer than loading them. The stages
    that score a checkpoint, and `mergemoe export`, compare the sha256 of every file with it.

    Args:
        path: a folder; a compressed one needs no remote code here.
        device: a torch device; `auto` is CUDA if there is a GPU.
        dtype: a torch dtype or its name; `auto` is the checkpoint's.
        deduplicate: compute the equal experts of a token once if the kernel is grouped_mm: less work, but the last bits
            differ. Other kernels do not change (docs/models.md).

    Raises:
        UserError: if the folder is not a checkpoint, not complete, damaged, or has a newer format.
    """
    device, dtype = _checked(device, dtype)
    _check_path(path)
    settings = model_folder.read_config(path)
    with naming(path):
        name = compact_class(path, settings) if "mergemoe" in settings else None
    headers = model_folder.read_headers(path)  # so that no pickle is opened, and what is missing or damaged is named
    check_stored_types(path, headers, settings)
    check_generation(path)
    check_adapter(path)
    check_names(path, headers)
    for key, stored in headers.items() if name else ():
        if key.endswith(".expert_map") and stored["dtype"] != "I64":  # transformers would cast it silently
            raise UserError(
                f"{path}: {key} is stored as {stored['dtype']}, not as I64. A file is damaged or was edited"
            )
    folder = Path(path).resolve()  # save looks there for the tokenizer, wherever it is called
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config().to_dict()
        check_top_k(
            path, text, sum(max(config_values(text, what), default=0) for what in ("experts", "identity_experts"))
        )
        with naming(path):
            cls = merged_class(name, deduplicate) if name else model_class(config)
        model, info = cls.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers' own, of any kind: each key of config.json can lead to another one
        if _has_zeros(settings):
            raise UserError(
                f"{path} has weights packed with zeros (compressed-tensors), and transformers "
                f"{transformers.__version__} cannot load it ({in_short(error)}). Load the run's own checkpoint, or "
                "what `mergemoe export` writes without --packed (docs/serving.md)"
            ) from error
        raise UserError(
            f"{path}: transformers cannot load it ({in_short(error)}). A file is damaged or was edited, or config.json "
            "and the weights belong to different checkpoints. Use the whole checkpoint as it was written"
        ) from error
    check_order(model, headers, path)
    check_held_ties(model, path)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{path} lacks {len(missing)} tensors that the model needs, such as {missing[0]}. transformers would fill "
            "them with random numbers. Files are missing, or config.json belongs to another checkpoint"
        )
    predicting = predicting_layers(headers, settings)
    if unread := sorted(key for key in info["unexpected_keys"] if not key.startswith(predicting)):
        raise UserError(
            f"{path} has {len(unread)} tensors that the model of its config.json does not read, such as {unread[0]}. "
            "Without them it would be another model. config.json belongs to another checkpoint, or was edited"
        )
    return model.to(device).eval()


def _check_path(path: object) -> None:
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise UserError(f"`path` must be the path of a folder; got {shown(path)}")


def _has_zeros(settings: Mapping[str, Any]) -> bool:
    """Tell whether a config.json describes weights packed with zeros, as `mergemoe export --packed` writes them."""
    found = quantization_settings(settings)
    groups = found.get("config_groups") if isinstance(found, Mapping) else {}
    if not isinstance(groups, Mapping):
        return False
    kinds = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    return any(isinstance(weights, Mapping) and weights.get("symmetric") is False for weights in kinds)


def _checked(device: Any, dtype: Any) -> tuple[torch.device, Any]:
    """Return the device that is meant, and the dtype, if there are such."""
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)  # else it is missed only after the weights were read
    except Exception as error:  # each backend raises its own
        raise UserError(f"`device` must be a torch device or auto; got {shown(device)} ({in_short(error)})") from None
    of_torch = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    automatic = isinstance(dtype, str) and dtype == "auto"
    if not automatic and not isinstance(of_torch, torch.dtype):
        raise UserError(f"`dtype` must be auto, or a torch dtype or its name, such as bfloat16; got {shown(dtype)}")
    return found, dtype


def save(model: "PreTrainedModel", path: str | Path) -> None:
    """Write a checkpoint folder that `load` and trust_remote_code read, with a card and the model's own tokenizer.

    It is written beside `path` and then renamed, so that a save that fails leaves no folder.

    Raises:
        UserError: if the folder exists, or its place is full, read-only or forbidden.
    """
    _check_path(path)
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists. save writes a new folder: choose another path")
    with writing(), atomic(path) as temporary:
        model.save_pretrained(temporary)
        _write_config(model, temporary / "config.json")
        if card := getattr(model, memory_card.ATTRIBUTE, None):
            (temporary / "README.md").write_text(card, encoding="utf-8")
        carry_files(Path(model.name_or_path or "nowhere"), temporary)
    if not list(path.glob("tokenizer*")):
        warnings.warn(
            f"{path} has no tokenizer, because the model does not come from a folder that has one "
            f"({model.name_or_path!r}). Save yours there: tokenizer.save_pretrained({str(path)!r})",
            stacklevel=2,
        )


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
        for key in CONFIG_KEYS["predicting_layers"]:
            if isinstance(part, dict) and part.get(key):  # transformers reads no such layer, so none was written
                part[key] = 0
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
