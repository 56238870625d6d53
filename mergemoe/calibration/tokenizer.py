"""Open a checkpoint's tokenizer, and say what is wrong with its files if transformers cannot."""

import json
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError

_FAST, _OLD = "tokenizer.json", "tokenizer.model"
_POINTER = b"version https://git-lfs"
_AGAIN = "Download the file again"
_NEVER = "Code that a checkpoint brings for its tokenizer is never run"


def open_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        UserError: transformers cannot build it; the message says which file or package is missing.
    """
    from transformers import AutoTokenizer  # slow to import: once per run, not once per parse

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any kind, if a file of the tokenizer is damaged
        said = (str(error) or type(error).__name__).partition("\n")[0]
        why = _fault_of_files(Path(folder)) or (
            f"has no tokenizer for transformers ({said}). {_NEVER}. Add the {_FAST} that belongs to the model"
        )
        raise UserError(f"{folder} {why}") from None
    dropout = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None)
    if dropout:
        raise UserError(
            f"{folder}: its {_FAST} leaves out merges at random (`dropout: {dropout:g}`), so that a text has "
            "other tokens each time. Set `dropout` to null: it is for training"
        )
    return tokenizer


def _fault_of_files(folder: Path) -> str | None:
    """Return the fault of the files of a tokenizer that cannot be built, if they tell it."""
    starts = {path.name: _start(path) for path in sorted(folder.glob("*")) if path.is_file()}
    if pointers := [name for name, start in starts.items() if start.startswith(_POINTER)]:
        return (
            f"has a pointer of git-LFS in place of {pointers[0]}. Run `git lfs pull` there, or download the file itself"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if name in starts and (fault := _fault_of_json(folder / name)):
            return fault
    if _FAST in starts:
        return _fault_of_fast(folder / _FAST)
    if _OLD not in starts:
        return None
    if starts[_OLD][:1] != b"\n":  # the first byte of a sentencepiece model; tiktoken's file is lines of base64
        return f"has {_OLD} and no {_FAST}, and {_OLD} is no model of sentencepiece. Add the {_FAST}"
    return (
        f"has {_OLD}, a model of sentencepiece, and no {_FAST}. Write that once: `pip install sentencepiece protobuf`, "
        f"then `AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`"
    )


def _fault_of_json(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"has a {path.name} that is not JSON ({error}). {_AGAIN}"
    return None


def _fault_of_fast(path: Path) -> str | None:
    if fault := _fault_of_json(path):
        return fault
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or "model" not in content:
        return f"has a {path.name} without `model`, so it was cut or edited. {_AGAIN}"
    return None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_POINTER))
