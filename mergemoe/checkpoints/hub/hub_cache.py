"""Paths of a hub model: its folder in huggingface_hub's cache, and the record of its download."""

import os
import re
from pathlib import Path

HUB_ID = re.compile(r"(?a:(?!.*(--|\.\.))(?=.{3,96}$)\w[\w.-]*/\w[\w.-]*)")  # `--` stands for the slash in paths
COMMIT = GIT_HASH = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_plain_name(name: object) -> bool:
    """Tell whether a name from elsewhere is the name of a file in one folder, and not a path."""
    if not isinstance(name, str) or name in {"", ".", ".."}:
        return False
    return name.isprintable() and not {"/", "\\"} & set(name) and len(name.encode(errors="replace")) <= 255


def cache_folder() -> Path:
    """Return the folder of huggingface_hub's cache, from the environment variables that huggingface_hub reads."""
    home = os.getenv("HF_HOME", os.path.join(os.getenv("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    named = os.getenv("HF_HUB_CACHE", os.getenv("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(named)))


def snapshot_folder(model: str | Path, revision: str) -> Path:
    """Return the folder for a commit of a model in huggingface_hub's cache, whether or not it exists."""
    return cache_folder() / f"models--{str(model).replace('/', '--')}" / "snapshots" / revision


def blobs_folder(model: str | Path) -> Path:
    """Return the folder of a model's files in huggingface_hub's cache; each is named by its digest at the hub."""
    return snapshot_folder(model, "0").parents[1] / "blobs"


def fetch_command(path: str | Path, revision: str) -> str:
    """Return the command that downloads a model of the hub."""
    return f"mergemoe fetch {path} --revision {revision}"


def fetch_record_path(path: str | Path, revision: str) -> Path:
    """Return the path of a fetch's record, relative to the folder of params.yaml."""
    return Path("data", "hub", str(path).replace("/", "--"), f"{revision}.json")
