"""Write the compressed checkpoint: the tensors of the original, shard by shard, with the solved layers in place.

Tensors keep their stored names and dtypes, and a solved layer stores M experts in the form of the N before. If stock
code has modules of these shapes (stock.py), nothing else changes. Otherwise a layer gets a buffer `expert_map`, the
configuration lists the size of each module, and modeling_mergemoe.py is added, so that transformers loads the
checkpoint with trust_remote_code and refuses it without.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mergemoe.checkpoints import model_folder, recorded_folder
from mergemoe.checkpoints.carried_files import carry_files, without_code
from mergemoe.checkpoints.expert_weights import StoredTensors
from mergemoe.checkpoints.shards import write_shards
from mergemoe.compressed import modeling, stock
from mergemoe.compressed.model_config import compact_config, module_facts, role_shape
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import LayerLayout, Layout
from mergemoe.moe.packing import Stacking
from mergemoe.moe.solved import group_sources
from mergemoe.progress import track
from mergemoe.quantization import other_matrices
from mergemoe.quantization.grids import rounded_blocks


def assemble(
    layout: Layout,
    solved: Mapping[int, Mapping[str, Tensor]],
    out: Path,
    shard_bytes: int = 4 << 30,
    rest: str = other_matrices.NONE,
) -> None:
    """Write a checkpoint folder; one that keeps all experts has the original's weights, byte for byte.

    Args:
        layout: what layout.describe_layout returned.
        solved: {layer: tensors of solve.solve}.
        out: a new folder.
        shard_bytes: largest size of a file, and so of the memory needed; a larger tensor gets its own file.
        rest: format of GGUF of the other matrices, whose values are written as float32; or none.

    Raises:
        UserError: if the routing changed and stock code cannot load the result.
    """
    folder = recorded_folder.open_original(layout)
    out.mkdir(parents=True)
    merged = {entry["layer"]: entry for entry in layout["layers"] if _changed(entry, solved[entry["layer"]])}
    if merged:
        original = without_code(model_folder.read_config(folder))
        sizes = {layer: (_kept(solved[layer]), _width(entry, solved[layer])) for layer, entry in merged.items()}
        config = stock.choose_config(original, layout, sizes, {layer: "router" in solved[layer] for layer in merged})
        with StoredTensors(folder) as stored:
            rounded = [] if rest == other_matrices.NONE else other_matrices.other_matrices(stored.headers, original)
            tensors = _tensors(merged, solved, stored, mapped=config is None)
            tensors = ((key, rounded_blocks(part, rest) if key in rounded else part) for key, part in tensors)
            write_shards(track(tensors, "assemble: tensors"), out, shard_bytes)
        if config is None:
            facts = {entry["module"]: module_facts(entry, *sizes[layer]) for layer, entry in merged.items()}
            config = compact_config(original, layout["architecture"], facts)
            (out / "modeling_mergemoe.py").write_text(modeling.source(), encoding="utf-8")
        (out / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")
    else:
        files = model_folder.checkpoint_files(folder)
        carry_files(folder, out, [path.relative_to(folder).as_posix() for path in files])
    carry_files(folder, out)


def saved_bytes(solved: Mapping[int, Mapping[str, Tensor]]) -> int:
    """Return by how much quantized layers are smaller in their format than in the checkpoint, which has float32."""
    saved = 0
    for tensors in solved.values():
        if "bytes" in tensors:
            written = sum(part.nbytes for role, part in tensors.items() if role in Experts.__dataclass_fields__)
            saved += written - int(tensors["bytes"])
    return saved


def _tensors(
    merged: Mapping[int, LayerLayout],
    solved: Mapping[int, Mapping[str, Tensor]],
    stored: StoredTensors,
    mapped: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the new checkpoint's tensors in the order of the old one; a merged layer comes whole at its first key."""
    of_experts = {key: layer for layer, entry in merged.items() for key in _keys(entry)}
    routers = {
        key: solved[layer][name]
        for layer, entry in merged.items()
        for name, key in entry["router"]["keys"].items()
        if name in solved[layer]
    }
    done = set()
    for key in stored.headers:
        layer = of_experts.get(key)
        if layer is None:
            yield key, routers.get(key, stored[key])
        elif layer not in done:
            done.add(layer)
            yield from _layer(merged[layer], solved[layer], stored)
            if mapped:
                yield _expert_map(merged[layer], solved[layer])


def _keys(entry: LayerLayout) -> list[str]:
    return [key for facts in entry["roles"].values() for key in (*facts["keys"], *facts["identity"])]


def _kept(tensors: Mapping[str, Tensor]) -> int:
    return int(tensors["expert_map"].max()) + 1


def _width(entry: LayerLayout, tensors: Mapping[str, Tensor]) -> int:
    return tensors["up"].shape[1] if len(tensors["groups"]) else entry["width"]


def _changed(entry: LayerLayout, tensors: Mapping[str, Tensor]) -> bool:
    return _kept(tensors) < entry["experts"] or len(tensors["groups"]) > 0


def _layer(entry: LayerLayout, tensors: Mapping[str, Tensor], stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of one merged layer; a group of one expert keeps that expert's bytes."""
    sources, kept = group_sources(tensors), _kept(tensors)
    written: dict[str, Tensor] = {}
    for role, facts in entry["roles"].items():
        keys, where = facts["keys"], Stacking(**facts["stored"])
        if facts["fused"]:  # one tensor, which may hold another role, too
            old = stored[keys[0]]
            if keys[0] not in written:
                shape = role_shape(entry, role, kept, _width(entry, tensors))
                written[keys[0]] = tensors[role].new_empty(where.shape(shape))
            view, before = where.view(written[keys[0]], kept), where.view(old, entry["experts"])
            for group, (row, expert) in enumerate(sources):
                view[group] = before[expert] if row is None else tensors[role][row]
            continue
        for group, (row, expert) in enumerate(sources):
            written[keys[group]] = stored[keys[expert]] if row is None else tensors[role][row]
        if "{}" in facts["parameter"]:  # their names stay (modeling.shrink_experts)
            written |= {key: tensors[role].new_empty([0] * (tensors[role].ndim - 1)) for key in keys[kept:]}
        every = [*keys, *facts["identity"]]
        spare = {every[kept + i]: stored[key] for i, key in enumerate(facts["identity"])}
        if _width(entry, tensors) != entry["width"]:  # no expert reads them, and a stack has one shape
            spare = {key: torch.zeros_like(tensors[role][0]) for key in spare}
        written |= spare
    yield from written.items()


def _expert_map(entry: LayerLayout, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    kept = _kept(tensors)
    rest = torch.arange(kept, kept + entry["identity"])  # experts that give their input back stay behind the others
    return entry["expert_map"]["key"], torch.cat([tensors["expert_map"], rest])
