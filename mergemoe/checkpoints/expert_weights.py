"""Read the experts of one layer with safetensors and torch alone, as the layout says where they lie."""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

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
        layout: what layout.describe_layout returned.
        layer: the number of a MoE layer.
        device: where the tensors go.
        folder: a compressed checkpoint of the same model, in place of the model itself.
    """
    folder = Path(folder) if folder else model_folder.locate_checkpoint(layout["path"], layout.get("revision"))
    entry = layer_entry(layout, layer)
    with StoredTensors(folder) as stored:
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
    """Return a layer's `router` [N, H] and, if it has one, `router_bias` [N], of a family in router_headers.ROUTERS.

    Raises:
        UserError: where it does not.
    """
    folder = Path(folder) if folder else model_folder.locate_checkpoint(layout["path"], layout.get("revision"))
    entry = layer_entry(layout, layer)["router"]
    if not entry["keys"]:
        raise UserError(
            f"{layout['model_type']}: this version does not know how {entry['class']} chooses, so its rows can be "
            "neither deleted nor joined: take a method that keeps the routing (docs/models.md)"
        )
    with StoredTensors(folder) as stored:
        return {name: stored[key].to(device) for name, key in entry["keys"].items()}


def read_expert_map(layout: Layout, layer: int, folder: str | Path) -> list[int]:
    """Return a compressed checkpoint's expert_map [N]; a layer that was left as it is has the identity."""
    with StoredTensors(Path(folder)) as stored:
        return _expert_map(layer_entry(layout, layer), stored)


def is_rerouted(layout: Layout, layer: int, folder: str | Path) -> bool:
    """Tell whether a compressed checkpoint's router has fewer rows than the original's in a layer."""
    entry = layer_entry(layout, layer)
    keys = entry["router"]["keys"]
    return bool(keys) and model_folder.read_headers(folder)[keys["router"]]["shape"][0] < entry["experts"]


def _count(entry: LayerLayout, stored: "StoredTensors") -> int:
    """Return how many experts a checkpoint holds: a stock one may have fewer than the original, too."""
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
    """The tensors of a checkpoint folder by key, each read when it is asked for."""

    def __init__(self, folder: Path):
        """Read the headers."""
        self.folder, self.headers = folder, model_folder.read_headers(folder)
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
            self.files[name] = self.stack.enter_context(safe_open(self.folder / name, "pt"))
        return self.files[name].get_tensor(key)


def layer_entry(layout: ModelLayout, layer: int) -> LayerLayout:
    """Return the layout of one MoE layer."""
    return next(entry for entry in layout["layers"] if entry["layer"] == layer)
