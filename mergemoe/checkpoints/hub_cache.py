"""Where huggingface_hub keeps a model, and where a fetch records what it brought."""

import os
import re
from pathlib import Path

HUB_ID, COMMIT = re.compile(r"[\w.-]+/[\w.-]+"), re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return the folder of huggingface_hub's cache, as its own environment variables name it."""
    home = os.getenv("HF_HOME", os.path.join(os.getenv("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    named = os.getenv("HF_HUB_CACHE", os.getenv("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(named)))


def snapshot_folder(model: str | Path, revision: str) -> Path:
    """Return the folder that huggingface_hub's cache has, or would have, for a commit of a model."""
    return cache_folder() / f"models--{str(model).replace('/', '--')}" / "snapshots" / revision


def fetch_command(path: str | Path, revision: str) -> str:
    """Return the command that brings a model of the hub."""
    return f"mergemoe fetch {path} --revision {revision}"


def fetch_record_path(path: str | Path, revision: str) -> Path:
    """Return the file, below the folder of params.yaml, where a fetch writes down what it brought."""
    return Path("data", "hub", str(path).replace("/", "--"), f"{revision}.json")
