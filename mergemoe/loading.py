"""Load a compressed or a stock checkpoint, and save what is in memory as one."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mergemoe.compact import CARRIED, FORMAT
from mergemoe.errors import UserError
from mergemoe.families import model_class
from mergemoe.modeling import merged_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    deduplicate: bool = False,
) -> "PreTrainedModel":
    """Return the model of a checkpoint folder, ready for inference.

    Args:
        path: a folder; a compressed one needs no remote code here.
        device: a torch device; `auto` is CUDA where there is one.
        dtype: a torch dtype or its name; `auto` is the checkpoint's own.
        deduplicate: compute a token's equal experts once, where the kernel is grouped_mm: less work, and other last
            bits; other kernels are left as they are (docs/models.md).

    Raises:
        UserError: where the folder is no checkpoint, or of a newer format.
    """
    if not Path(path, "config.json").is_file():
        raise UserError(f"{path}: no config.json there; give the folder of a checkpoint")
    settings = json.loads(Path(path, "config.json").read_text())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if "mergemoe" not in settings:
        cls = model_class(config)
    elif settings["mergemoe"]["format"] > FORMAT:
        raise UserError(
            f"{path} has format {settings['mergemoe']['format']}, this version reads up to {FORMAT}: update it"
        )
    else:
        (named,) = settings["auto_map"].values()
        cls = merged_class(named.rpartition(".MergeMoe")[2])
        config.mergemoe = {**settings["mergemoe"], "deduplicate": deduplicate}
    model: Any = cls.from_pretrained(path, config=config, dtype=dtype)
    return model.to(device).eval()


def save(model: "PreTrainedModel", path: str | Path) -> None:
    """Write a checkpoint folder that `load` and trust_remote_code read, with the tokenizer the model came with.

    Raises:
        UserError: where the folder exists.
    """
    if Path(path).exists():
        raise UserError(f"{path} exists: save writes a new folder")
    model.save_pretrained(path)
    origin = Path(model.name_or_path or "nowhere")
    for file in sorted(origin.iterdir()) if origin.is_dir() else ():
        if file.name.startswith(CARRIED) and not Path(path, file.name).exists():
            shutil.copyfile(file, Path(path, file.name))
