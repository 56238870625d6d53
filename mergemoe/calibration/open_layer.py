"""Open one MoE layer: its experts, its activation function and its calibration tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergemoe.calibration.activation_file import Reader
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts, read_router
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.layout_types import LayerLayout, Layout
from mergemoe.moe.problem import Group, Problem
from mergemoe.moe.router_rule import Router, layer_router
from mergemoe.moe.tokens import Activations


@dataclass(frozen=True)
class OpenLayer:
    """One MoE layer: its part of the layout, its experts and its calibration tokens."""

    entry: LayerLayout
    experts: Experts
    reader: Activations

    @property
    def act(self) -> Activation:
        """The activation function of the experts."""
        return Activation(**self.entry["activation"])

    def problem(self, groups: Sequence[Group] = (), changed: Router | None = None) -> Problem:
        """Return the layer with its experts in float32; `changed` is the router that replaces its own."""
        working = self.experts.map(lambda matrices: matrices.float())
        return Problem(working, list(groups), self.reader, self.act, changed)


def router_of(layout: Layout, layer: int, solved: Mapping[str, Tensor], device: torch.device) -> Router | None:
    """Return the original router of a layer if its solve changed the routing, else None."""
    return layer_router(layer_entry(layout, layer), read_router(layout, layer, device)) if "router" in solved else None


@contextmanager
def open_layer(
    layout: Layout, layer: int, capture: str | Path, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[OpenLayer]:
    """Open a layer of a checkpoint with its captured activations.

    Args:
        layout: the checkpoint's.
        layer: the number of a MoE layer.
        capture: the layer's file of captured activations.
        device: where the experts go; the tokens follow them.
        dtype: of the experts; by default the stored one.

    Raises:
        ArtifactError: if the file is damaged or another layer's.
    """
    with Reader(capture, layer) as reader:
        experts = read_experts(layout, layer, device)
        if dtype is not None:
            experts = experts.map(lambda matrices: matrices.to(dtype))
        yield OpenLayer(layer_entry(layout, layer), experts, reader)
