"""What a checkpoint folder says of itself: configuration and safetensors headers, all of it JSON.

Nothing here imports torch or transformers, so that the Snakefile can ask in every job it parses.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError

# A layer's number, and later in the key a component `experts` (never `shared_experts`).
_EXPERT = re.compile(r"\.(\d+)\.(?:.*\.)?experts\.(?:(\d+)\.)?")


def shards(folder: str | Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted.

    Raises:
        UserError: where the folder is missing, or holds no safetensors file.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; `model.<name>.path` must name a checkpoint folder")
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise UserError(
            f"{folder} holds no *.safetensors file; pickled weights (*.bin, *.pt) are refused: convert them"
        )
    return found


def files(folder: str | Path) -> list[Path]:
    """Return the files that make a checkpoint's numbers: configuration, tokenizer, weights."""
    shards(folder)
    return sorted(
        p for p in Path(folder).iterdir() if p.suffix in {".json", ".safetensors", ".model", ".jinja", ".txt"}
    )


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return config.json as a dictionary."""
    return json.loads(Path(folder, "config.json").read_text())


def read_headers(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return {key: {dtype, shape, file, bytes}} of every stored tensor."""
    headers = {}
    for path in shards(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length)
            if len(header) < length:
                raise UserError(f"{path} is truncated inside its header: fetch the checkpoint again")
            entries = json.loads(header)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes where its header promises {8 + length + end}: "
                "the copy is not complete; fetch the checkpoint again"
            )
        for key, entry in entries.items():
            start, stop = entry["data_offsets"]
            headers[key] = {"dtype": entry["dtype"], "shape": entry["shape"], "file": path.name, "bytes": stop - start}
    return headers


def expert_sizes(folder: str | Path) -> dict[int, dict[str, int]]:
    """Return {layer: parameters, bytes and width I of all its routed experts together}."""
    sizes: dict[int, dict[str, int]] = {}
    for key, entry in read_headers(folder).items():
        if match := _EXPERT.search(key):
            layer = sizes.setdefault(int(match[1]), {"parameters": 0, "bytes": 0, "width": 0})
            layer["parameters"] += math.prod(entry["shape"])
            layer["bytes"] += entry["bytes"]
            if "down" in key or ".w2." in key:
                layer["width"] = entry["shape"][-1]
    return sizes


def count_experts(folder: str | Path) -> dict[int, int]:
    """Return {layer: number of routed experts} of every MoE layer, from the headers alone.

    Raises:
        UserError: where no layer has experts.
    """
    experts: dict[int, int] = {}
    for key, entry in read_headers(folder).items():
        if match := _EXPERT.search(key):
            layer, expert = match.groups()
            count = int(expert) + 1 if expert else entry["shape"][0]
            experts[int(layer)] = max(experts.get(int(layer), 0), count)
    if not experts:
        model_type = read_config(folder).get("model_type")
        raise UserError(
            f"{folder} ({model_type}) has no layer with experts: a dense model has nothing to merge. "
            "Point `model.<name>.path` at a Mixture-of-Experts checkpoint"
        )
    return dict(sorted(experts.items()))
