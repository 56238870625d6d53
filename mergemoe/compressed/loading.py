"""Load a compressed or a stock checkpoint, and save a model as one."""

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.shards import CARRIED
from mergemoe.compressed.model_config import FORMAT
from mergemoe.compressed.modeling import merged_class
from mergemoe.errors import UserError
from mergemoe.models.families import model_class

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
        device: a torch device; `auto` is CUDA if there is a GPU.
        dtype: a torch dtype or its name; `auto` is the checkpoint's.
        deduplicate: compute the equal experts of a token once if the kernel is grouped_mm: less work, but the last bits
            differ. Other kernels do not change (docs/models.md).

    Raises:
        UserError: if the folder is not a checkpoint, not complete, or has a newer format.
    """
    settings = model_folder.read_config(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if "mergemoe" not in settings:
        cls = model_class(config)
    elif settings["mergemoe"]["format"] > FORMAT:
        raise UserError(
            f"{path} has format {settings['mergemoe']['format']}; this version reads up to {FORMAT}. Update mergemoe"
        )
    else:
        named = next(name for name in settings["auto_map"].values() if ".MergeMoe" in name)
        cls = merged_class(named.rpartition(".MergeMoe")[2], deduplicate)
    model_folder.shard_files(path)  # so that a pickle is not opened, and what is missing is named
    folder = Path(path).resolve()  # save looks there for the tokenizer, wherever it is called
    model, info = cls.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{path} lacks {len(missing)} tensors that the model needs, such as {missing[0]}. transformers would fill "
            "them with random numbers. Files are missing, or config.json belongs to another checkpoint"
        )
    return model.to(device).eval()


def save(model: "PreTrainedModel", path: str | Path) -> None:
    """Write a checkpoint folder that `load` and trust_remote_code read, with the tokenizer the model came with.

    Raises:
        UserError: if the folder exists.
    """
    if Path(path).exists():
        raise UserError(f"{path} exists. save writes a new folder: choose another path")
    model.save_pretrained(path)
    origin = Path(model.name_or_path or "nowhere")
    for file in sorted(origin.iterdir()) if origin.is_dir() else ():
        if file.is_file() and file.name.startswith(CARRIED) and not Path(path, file.name).exists():
            shutil.copyfile(file, Path(path, file.name))
    if not list(Path(path).glob("tokenizer*")):
        warnings.warn(
            f"{path} has no tokenizer, because the model does not come from a folder that has one "
            f"({model.name_or_path!r}). Save yours there: tokenizer.save_pretrained({str(path)!r})",
            stacklevel=2,
        )
