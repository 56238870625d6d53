"""The license that a checkpoint states, which a compressed copy of it has, too."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from mergemoe.checkpoints import model_folder

KEYS = ("license", "license_name", "license_link")


def stated_license(folder: Path) -> dict[str, Any]:
    """Return the license that a checkpoint's card states, or else its config.json, in the keys of the hub's cards."""
    found = _front_matter(folder / "README.md")
    stated = {key: found[key] for key in KEYS if _is_text(found.get(key))}
    if "license" in stated:
        return stated
    license = model_folder.read_config(folder).get("license")
    return {"license": license} if _is_text(license) else {}


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        return (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError):  # somebody else's text, which nothing depends on
        return {}


def _is_text(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(isinstance(one, str) and one for one in each)
