"""Write the compact checkpoint: the original's tensors, shard by shard, with the solved layers in place.

Tensors keep their stored names and dtypes. A merged layer stores experts 0..M-1 and the buffer `expert_map`; the
configuration says how many experts each module has, and modeling_mergemoe.py comes along, so that transformers
loads it with trust_remote_code and refuses it loudly without.
"""

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergemoe import checkpoint, modeling
from mergemoe.loading import FORMAT
from mergemoe.progress import track

CARRIED = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template", "generation_config")


def assemble(layout: Mapping[str, Any], solved: Mapping[int, Mapping[str, Tensor]], out: Path) -> None:
    """Write a checkpoint folder.

    Args:
        layout: what layout.describe returned.
        solved: {layer: tensors of solve.solve}.
        out: a new folder.
    """
    folder = Path(layout["path"])
    out.mkdir(parents=True)
    stored_in = {key: entry["file"] for key, entry in checkpoint.read_headers(folder).items()}
    new, dropped = _replacements(layout, solved)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in track(checkpoint.shards(folder), "assemble: shards"):
        with safe_open(shard, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if key not in dropped}  # noqa: SIM118
        for key, (neighbour, content) in new.items():
            if stored_in[neighbour] == shard.name:
                tensors[key] = content if isinstance(content, Tensor) else _read(folder / stored_in[content], content)
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, sort_keys=True, indent=1) + "\n")
    _write_config(layout, solved, out)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(CARRIED):
            shutil.copyfile(path, out / path.name)


def _replacements(
    layout: Mapping[str, Any], solved: Mapping[int, Mapping[str, Tensor]]
) -> tuple[dict[str, tuple[str, Tensor | str]], set[str]]:
    """Return {new key: (old key whose shard it goes to, tensor or old key to copy)}, and the old keys not copied."""
    new: dict[str, tuple[str, Tensor | str]] = {}
    dropped: set[str] = set()
    for entry in layout["layers"]:
        tensors = solved[entry["layer"]]
        expert_map = tensors["expert_map"].tolist()
        kept = max(expert_map) + 1
        if kept == entry["experts"]:
            continue
        row_of = {group: row for row, group in enumerate(tensors["groups"].tolist())}
        for role, stored in entry["roles"].items():
            keys = stored["keys"]
            dropped |= set(keys)
            for group in range(kept):
                merged = tensors[role][row_of[group]].clone() if group in row_of else keys[expert_map.index(group)]
                new[keys[group]] = (keys[group], merged)
        new[f"{entry['module']}.expert_map"] = (entry["roles"]["down"]["keys"][0], tensors["expert_map"])
    return new, dropped


def _read(shard: Path, key: str) -> Tensor:
    with safe_open(shard, "pt") as file:
        return file.get_tensor(key)


def _write_config(layout: Mapping[str, Any], solved: Mapping[int, Mapping[str, Tensor]], out: Path) -> None:
    config = checkpoint.read_config(layout["path"])
    stock = layout["architecture"]
    kept = {e["module"]: int(solved[e["layer"]]["expert_map"].max()) + 1 for e in layout["layers"]}
    merged = {e["module"]: kept[e["module"]] for e in layout["layers"] if kept[e["module"]] < e["experts"]}
    if merged:
        config["mergemoe"] = {"format": FORMAT, "experts": merged}
        config["auto_map"] = {"AutoModelForCausalLM": f"modeling_mergemoe.MergeMoe{stock}"}
        source = inspect.getsource(modeling).replace(
            "import torch\n", f"import torch\nfrom transformers import {stock}\n", 1
        )
        (out / "modeling_mergemoe.py").write_text(f"{source}\n\nMergeMoe{stock} = merged_class({stock})\n")
    (out / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2) + "\n")
