"""Load a compressed or a stock checkpoint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from mergemoe.errors import UserError
from mergemoe.modeling import merged_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1  # of the compressed checkpoint


def load(path: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> "PreTrainedModel":
    """Return the model of a checkpoint folder, ready for inference.

    Args:
        path: a folder; a compressed one needs no remote code here.
        device: a torch device; `auto` is CUDA where there is one.
        dtype: a torch dtype or its name; `auto` is the checkpoint's own.

    Raises:
        UserError: where the folder is no checkpoint, or of a newer format.
    """
    config = Path(path, "config.json")
    if not config.is_file():
        raise UserError(f"{path}: no config.json there; give the folder of a checkpoint")
    settings = json.loads(config.read_text())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if "mergemoe" not in settings:
        cls: Any = transformers.AutoModelForCausalLM
    elif settings["mergemoe"]["format"] > FORMAT:
        raise UserError(
            f"{path} has format {settings['mergemoe']['format']}, this version reads up to {FORMAT}: update it"
        )
    else:
        name = settings["auto_map"]["AutoModelForCausalLM"].removeprefix("modeling_mergemoe.MergeMoe")
        cls = merged_class(getattr(transformers, name))
    model: Any = cls.from_pretrained(path, dtype=dtype)
    return model.to(device).eval()
