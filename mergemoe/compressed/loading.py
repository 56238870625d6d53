"""Load a compressed or a stock checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.config_keys import config_values
from mergemoe.checkpoints.quantization import quantization_settings
from mergemoe.checkpoints.unmerged_parts import check_adapter, check_names
from mergemoe.checkpoints.validation import check_generation, check_stored_types, check_top_k
from mergemoe.compressed.model_config import compact_class
from mergemoe.compressed.modeling import merged_class
from mergemoe.errors import UserError, in_short, naming, shown
from mergemoe.models.completeness import check_order, check_prefix, refuse_unread
from mergemoe.models.families import model_class
from mergemoe.models.kernels import check_kernels
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
    check_path(path)
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
        check_kernels(cls, settings, path)
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
        check_prefix(model, headers, path)
        raise UserError(
            f"{path} lacks {len(missing)} tensors that the model needs, such as {missing[0]}. transformers would fill "
            "them with random numbers. Files are missing, or config.json belongs to another checkpoint"
        )
    refuse_unread(info["unexpected_keys"], headers, path)
    return model.to(device).eval()


def check_path(path: object) -> None:
    """Check that what was given is the path of a folder.

    Raises:
        UserError: it is not.
    """
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
