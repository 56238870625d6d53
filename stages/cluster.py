"""Group the experts of one layer.

python -m stages.cluster --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --budget [BUDGET.json] --out LAYER.json

`experts` in JSON is the number or share that is kept; null leaves the layer unchanged. A BUDGET replaces it.
"""

import argparse

import torch

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.open_layer import open_layer
from mergemoe.checkpoints.expert_weights import layer_entry
from mergemoe.grouping import cluster
from mergemoe.moe import layer_sizes
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.records import Budget, LayerGrouping, LayerProfile
from stages.support import command


@command.stage("cluster", __doc__, "layout", "capture", "profile", many=["budget"], also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read experts, usage and activations, group, write the groups with their measurements."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    layer, entry = int(args.layer), layer_entry(layout, int(args.layer))
    profile: LayerProfile = store.read_json(args.profile, layer)
    untouched = args.cfg["experts"] is None
    kept = layer_sizes.kept_experts(args.cfg["experts"], entry["experts"])
    width = layer_sizes.kept_width(args.cfg["width"], entry["width"], args.cfg["width_multiple"])
    for path in args.budget:
        budget: Budget = store.read_json(path)
        kept, width = budget["layers"][str(layer)]["experts"], budget["layers"][str(layer)]["width"]
    by, max_size = "none" if untouched else args.cfg["by"], args.cfg["max_size"]
    search = args.cfg.get("search", "full")
    with open_layer(layout, layer, args.capture, device, torch.float32) as opened:
        problem, router_groups = opened.problem(), entry["router"]["groups"]
        grouped = cluster.group_experts(by, kept, problem, profile, width, max_size, router_groups, search)
        groups = cluster.describe_grouping(grouped, profile["usage"], opened.reader)
    payload: LayerGrouping = {
        "layer": layer,
        "by": args.cfg["by"],
        "untouched": untouched,
        "width": width,
        **groups,
        "needed_tokens": layer_sizes.needed_tokens(kept, width),
    }
    store.write_json(args.out, payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
