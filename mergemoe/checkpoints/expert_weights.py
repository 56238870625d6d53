"""Read the experts and the router of one layer, from the places in the layout, with safetensors and torch alone."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mergemoe.artifacts import store
from mergemoe.checkpoints import model_folder
from mergemoe.errors import UserError
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import LayerLayout, Layout, ModelLayout
from mergemoe.moe.packing import Stacking


def read_experts(
    layout: Layout, layer: int, device: torch.device | str = "cpu", folder: str | Path | None = None
) -> Experts:
    """Return all experts of a layer, in the stored dtype.

    Args:
        layout: the model's layout, from layout.describe_layout.
        layer: the number of a MoE layer.
        device: the device for the tensors.
        folder: a compressed checkpoint of the same model to read instead of the model itself.
    """
    entry = layer_entry(layout, layer)
    with _stored(layout, folder) as stored:
        kept = _count(entry, stored)
        roles = {}
        for role, facts in entry["roles"].items():
            keys = facts["keys"]
            whole = stored[keys[0]] if facts["fused"] else torch.stack([stored[key] for key in keys[:kept]])
            roles[role] = Stacking(**facts["stored"]).view(whole, kept).to(device)
        if entry["norm"]:
            roles["norm"] = stored[entry["norm"]["key"]].expand(kept, -1).to(device)
    return Experts(**roles)


def read_router(
    layout: Layout, layer: int, device: torch.device | str = "cpu", folder: str | Path | None = None
) -> dict[str, Tensor]:
    """Return a layer's `router` [N, H] and, if it has one, its `router_bias` [N].

    Raises:
        UserError: the family is not in router_headers.ROUTERS.
    """
    entry = layer_entry(layout, layer)["router"]
    if not entry["keys"]:
        raise UserError(
            f"{layout['model_type']}: the routing rule of {entry['class']} is not known to this version, so rows of "
            "the router can be neither deleted nor joined. Use a method that keeps the routing (docs/models.md)"
        )
    with _stored(layout, folder) as stored:
        return {name: stored[key].to(device) for name, key in entry["keys"].items()}


def read_expert_map(layout: Layout, layer: int, folder: str | Path) -> list[int]:
    """Return the expert_map [N] of a layer in a compressed checkpoint; an unchanged layer has the identity map."""
    with StoredTensors(Path(folder)) as stored:
        return _expert_map(layer_entry(layout, layer), stored)


def is_rerouted(layout: Layout, layer: int, folder: str | Path) -> bool:
    """Return whether the layer's router has fewer rows in the compressed checkpoint than in the original."""
    entry = layer_entry(layout, layer)
    keys = entry["router"]["keys"]
    return bool(keys) and model_folder.read_headers(folder)[keys["router"]]["shape"][0] < entry["experts"]


def _stored(layout: Layout, folder: str | Path | None) -> "StoredTensors":
    if folder:
        return StoredTensors(Path(folder))
    return StoredTensors(model_folder.locate_checkpoint(layout["path"], layout.get("revision")), layout["files"])


def _count(entry: LayerLayout, stored: "StoredTensors") -> int:
    """Return the number of stored experts; a compressed checkpoint may hold fewer than the original."""
    if entry["expert_map"]["key"] in stored.headers:
        return max(_expert_map(entry, stored)) + 1
    facts = entry["roles"]["up"]
    if facts["fused"]:
        return entry["experts"] if facts["stored"]["flat"] else stored.headers[facts["keys"][0]]["shape"][0]
    return sum(key in stored.headers for key in facts["keys"])


def _expert_map(entry: LayerLayout, stored: "StoredTensors") -> list[int]:
    if entry["expert_map"]["key"] not in stored.headers:
        return list(range(entry["experts"]))
    return stored[entry["expert_map"]["key"]].tolist()[: entry["experts"]]


class StoredTensors:
    """The tensors of a checkpoint folder by key; each is read when it is used."""

    def __init__(self, folder: Path, recorded: Mapping[str, str] | None = None):
        """Read the headers; of an original checkpoint, `recorded` has the sha256 that its files must have."""
        self.folder, self.headers, self.recorded = folder, model_folder.read_headers(folder), recorded
        self.stack, self.files = ExitStack(), {}

    def __enter__(self) -> "StoredTensors":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.stack.close()

    def __getitem__(self, key: str) -> Tensor:
        """Return one tensor."""
        name = self.headers[key]["file"]
        if name not in self.files:
            if self.recorded:
                store.check_files(self.folder, {name: self.recorded.get(name, "")}, original=True, once=True)
            self.files[name] = self.stack.enter_context(safe_open(self.folder / name, "pt"))
        return self.files[name].get_tensor(key)


def layer_entry(layout: ModelLayout, layer: int) -> LayerLayout:
    """Return the layout of one MoE layer."""
    return next(entry for entry in layout["layers"] if entry["layer"] == layer)
