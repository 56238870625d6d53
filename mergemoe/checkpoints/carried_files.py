"""The files that go with a checkpoint's weights into a copy of it: tokenizer, processor, chat templates, license.

Python files never do, because code of a checkpoint is never run here. So what names them is left out as well:
transformers would look for the files and fail.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.model_folder import TEMPLATES

LICENSES = "LICENSES"  # the folder of the REUSE specification
FOLDERS = (TEMPLATES, LICENSES)
CARD = "README.md"  # states the license; a copy gets a card of its own

# Beginnings of names.
_TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "spiece", "sentencepiece", "tekken")
_OTHERS = ("chat_template", "generation_config", "preprocessor_config", "processor_config", "video_preprocessor_config")
_TERMS = ("license", "licence", "copying", "notice", "policy", "acceptable_use", "terms", "legal")  # of any case
_VOCABULARIES = (".tiktoken", ".spm", ".codes", "tiktoken.model")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

_CODE = ("auto_map", "custom_pipelines")  # keys whose values name classes in Python files


def is_carried(name: str) -> bool:
    """Tell whether a file goes with the weights, by its name relative to the checkpoint's folder."""
    if "/" in name:
        folder, _, inner = name.partition("/")
        return "/" not in inner and (folder == LICENSES or (folder == TEMPLATES and inner.endswith(".jinja")))
    if name.endswith((".py", *_WEIGHTS)):
        return False
    if name.startswith((*_TOKENIZER, *_OTHERS)) or name.endswith(_VOCABULARIES):
        return True
    return not name.endswith(".json") and any(term in name.lower() for term in _TERMS)


def carried_files(folder: Path) -> list[str]:
    """Return the names, relative to a checkpoint's folder, of its files that go with the weights."""
    places = [place for place in (folder, *(folder / name for name in FOLDERS)) if place.is_dir()]
    found = [path for place in places for path in place.iterdir()]
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
    return [name for name in names if is_carried(name)]


def carry_files(folder: Path, out: Path, names: Iterable[str] | None = None) -> None:
    """Copy the files that go with the weights, or the named ones, unless they are there, without what names code."""
    for name in carried_files(folder) if names is None else names:
        if not (out / name).exists():
            (out / name).parent.mkdir(exist_ok=True)
            _copy(folder / name, out / name)


def copy_others(folder: Path, out: Path) -> None:
    """Copy all that a checkpoint has beside config.json and weights: a converted copy stands for the original."""
    beside = [path.relative_to(folder).as_posix() for path in model_folder.checkpoint_files(folder)]
    others = [name for name in beside if not name.endswith((".safetensors", ".index.json")) and name != "config.json"]
    carry_files(folder, out, {*others, *carried_files(folder), *([CARD] if (folder / CARD).is_file() else [])})


def without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file without the keys that name Python files, at any depth."""
    return {key: _clean(value) for key, value in settings.items() if key not in _CODE}


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(part) for part in value]
    return without_code(value) if isinstance(value, dict) else value


def _copy(source: Path, target: Path) -> None:
    try:
        settings = json.loads(source.read_bytes()) if source.name.endswith("config.json") else {}
    except (ValueError, RecursionError):  # a damaged file stays as it is: who reads it will say so
        settings = {}
    if isinstance(settings, dict) and (cleaned := without_code(settings)) != settings:
        text = json.dumps(cleaned, indent=2, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source, target)
