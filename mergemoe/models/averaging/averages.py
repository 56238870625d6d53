"""Averages of the checkpoints of one training run (arXiv 2505.12082): the weights, and what must be the same.

M = sum_i w_i M_i,   M_1 the oldest of N checkpoints

sma   w_i = 1 / N
wma   w_i = i, normalized
ema   M^(i) = alpha M_i + (1 - alpha) M^(i-1), M^(1) = M_1
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.quantization import quantization_settings
from mergemoe.errors import UserError

By = Literal["sma", "wma", "ema"]
_FREE = ("transformers_version", "_name_or_path")  # keys of config.json that may differ
_TOKENS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


def weights(by: By, count: int, alpha: float) -> list[float]:
    """Return the weight of each checkpoint, the oldest first; they sum to 1."""
    if by == "sma":
        return [1 / count] * count
    if by == "wma":
        return [2 * i / (count * (count + 1)) for i in range(1, count + 1)]
    kept = [(1 - alpha) ** (count - i) for i in range(1, count + 1)]
    return [kept[0], *(alpha * share for share in kept[1:])]


def check_alike(folders: Sequence[Path]) -> None:
    """Check that checkpoints have the same configuration, tokenizer, tensors, shapes and dtypes.

    Raises:
        UserError: if they are not of one model, or quantized, because packed numbers have no average.
    """
    newest = folders[-1]
    config, headers = model_folder.read_config(newest), _shapes(newest)
    if quantization_settings(config) is not None:
        raise UserError(f"{newest} is quantized, and such weights have no average. Name checkpoints in 16 or 32 bits")
    for folder in folders[:-1]:
        other, theirs = model_folder.read_config(folder), _shapes(folder)
        keys = sorted(key for key in config.keys() | other.keys() if key not in _FREE)
        for key in keys:
            if config.get(key) != other.get(key):
                raise apart(folder, newest, f"{key} is {other.get(key)!r} in config.json, not {config.get(key)!r}")
        for name in sorted(headers.keys() | theirs.keys()):
            if headers.get(name) != theirs.get(name):
                raise apart(folder, newest, f"the tensor {name} is {theirs.get(name)}, not {headers.get(name)}")
        for name in _TOKENS:
            if _content(folder / name) != _content(newest / name):
                raise apart(folder, newest, f"{name} is another")


def apart(folder: Path, newest: Path, fact: str) -> UserError:
    """Return the error that says why two checkpoints have no average."""
    return UserError(
        f"{folder} and {newest} cannot be averaged: {fact}. `paths` of `average` takes checkpoints of one training "
        "run, the oldest first"
    )


def _shapes(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in model_folder.read_headers(folder).items()}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
