"""Write a checkpoint's tensors into shards."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_shards(tensors: Iterable[tuple[str, Tensor]], out: Path, shard_bytes: int) -> None:
    """Write named tensors into safetensors files of at most `shard_bytes`, and an index if there are several files."""
    weight_map: dict[str, Path] = {}
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        path = out / f"shard-{len(set(weight_map.values())):05d}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, path))
        pending.clear()

    for key, tensor in tensors:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[key] = tensor.contiguous()
        total += tensor.nbytes
    flush()
    files = sorted(set(weight_map.values()))
    names = {
        path: "model.safetensors" if len(files) == 1 else f"model-{i:05d}-of-{len(files):05d}.safetensors"
        for i, path in enumerate(files, 1)
    }
    for path, name in names.items():
        path.rename(out / name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {key: names[p] for key, p in weight_map.items()}}
        (out / "model.safetensors.index.json").write_text(
            json.dumps(index, sort_keys=True, indent=1) + "\n", encoding="utf-8"
        )
