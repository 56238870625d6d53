"""Tell that a folder holds an adapter, or the weights of a wrapper around a model, and not a model by itself.

Training libraries save both. transformers reads neither as the model that it belongs to: it fills what is missing with
random numbers, or puts the adapter on top.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from mergemoe.checkpoints.json_object import read_object
from mergemoe.errors import UserError, shown

ADAPTER = "adapter_config.json"
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "model.module"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "the model inside"),
    "module.": ("DataParallel, DDP or DeepSpeed", "model.module"),
}
_OF_ADAPTERS = (".base_layer.", ".lora_A.", ".lora_B.", ".modules_to_save.")
_MERGE = (
    "An adapter changes the weights of another model. Load both with peft, merge them "
    "(`model.merge_and_unload().save_pretrained(...)`), and name the new folder"
)


def check_adapter(folder: str | Path) -> None:
    """Check that there is no adapter beside the weights, which transformers would put on top of them.

    Raises:
        UserError: there is one.
    """
    if Path(folder, ADAPTER).exists():
        raise UserError(
            f"{folder} holds an adapter ({ADAPTER}) beside the weights. If they have it merged in, move it elsewhere"
        )


def adapter_instead(folder: str | Path) -> str | None:
    """Return the message for a folder that has an adapter in place of a model; None if it has none."""
    path = Path(folder, ADAPTER)
    if not os.path.isfile(path):  # pathlib's raises for a name that is too long
        return None
    base = read_object(path).get("base_model_name_or_path")
    return f"{folder} holds an adapter ({ADAPTER}, of the model {shown(base)}), and no model. {_MERGE}"


def check_names(folder: str | Path, keys: Iterable[str]) -> None:
    """Check that no stored tensor has a name that a wrapper or an adapter gives.

    Raises:
        UserError: one has; the message gives its key and what it means.
    """
    for key in keys:
        if key.startswith("base_model.model.") or any(part in key for part in _OF_ADAPTERS):
            raise UserError(f"{folder} stores {key[:200]}, as peft names the weights under an adapter. {_MERGE}")
        found = next((part for part in _INSIDE if part in key), "module." if key.startswith("module.") else None)
        if found:
            wrapper, inside = _WRAPPERS[found]
            raise UserError(
                f"{folder} stores {key[:200]}: {found!r} is the name of a wrapper ({wrapper}), so the model inside was "
                f"not saved by itself. Save {inside} with its save_pretrained, or take {found!r} out of all names"
            )
