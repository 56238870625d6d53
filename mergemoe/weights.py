"""Read the experts of one layer with safetensors and torch alone, as the layout says where they lie."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mergemoe import checkpoint


@dataclass(frozen=True)
class Experts:
    """The matrices of E experts; `gate` is None where the family has none.

    Shapes: up and gate [E, I, H], down [E, H, I].
    """

    up: Tensor
    down: Tensor
    gate: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of experts E."""
        return len(self.up)

    def __getitem__(self, which: Sequence[int] | Tensor | slice) -> "Experts":
        """Return some of the experts, in the order asked for."""
        return self.map(lambda matrices: matrices[which])

    def map(self, change: Any) -> "Experts":
        """Return experts whose every role is changed by one function of [E, ., .]."""
        gate = None if self.gate is None else change(self.gate)
        return Experts(up=change(self.up), down=change(self.down), gate=gate)

    def roles(self) -> dict[str, Tensor]:
        """Return {role: matrices} of the roles that are there."""
        named = {"gate": self.gate, "up": self.up, "down": self.down}
        return {role: matrices for role, matrices in named.items() if matrices is not None}


def read_experts(
    layout: Mapping[str, Any], layer: int, device: torch.device | str = "cpu", folder: str | Path | None = None
) -> Experts:
    """Return all experts of a layer, in the stored dtype.

    Args:
        layout: what layout.describe returned.
        layer: the number of a MoE layer.
        device: where the tensors go.
        folder: a compressed checkpoint of the same model, in place of the model itself.
    """
    folder = Path(folder or layout["path"])
    headers = checkpoint.read_headers(folder)
    entry = layer_entry(layout, layer)
    roles = {}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for role, stored in entry["roles"].items():
            matrices = []
            for key in (key for key in stored["keys"] if key in headers):
                file = headers[key]["file"]
                if file not in files:
                    files[file] = stack.enter_context(safe_open(folder / file, "pt"))
                matrices.append(files[file].get_tensor(key))
            roles[role] = torch.stack(matrices).to(device)
    return Experts(**roles)


def read_expert_map(layout: Mapping[str, Any], layer: int, folder: str | Path) -> list[int]:
    """Return a compressed checkpoint's expert_map [N]; a layer that was left as it is has the identity."""
    entry = layer_entry(layout, layer)
    key = f"{entry['module']}.expert_map"
    headers = checkpoint.read_headers(folder)
    if key not in headers:
        return list(range(entry["experts"]))
    with safe_open(Path(folder, headers[key]["file"]), "pt") as file:
        return file.get_tensor(key).tolist()


def layer_entry(layout: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Return the layout of one MoE layer."""
    return next(entry for entry in layout["layers"] if entry["layer"] == layer)
