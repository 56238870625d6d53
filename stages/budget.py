"""Choose how many experts each layer keeps, and how wide, from one budget for all layers.

python -m stages.budget --cfg JSON --code DIGEST --layout LAYOUT.json --measured LAYER.json ... --out BUDGET.json

MEASURED are the layers' curves, or their profiles if the budget is spent by usage.
"""

import argparse

from mergemoe.artifacts import store
from mergemoe.checkpoints.expert_weights import layer_entry
from mergemoe.grouping import allocation
from mergemoe.moe import layer_sizes
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.records import Budget, LayerSize
from stages.support import command


@command.stage("budget", __doc__, "layout", many=["measured"])
def main(args: argparse.Namespace) -> None:
    """Read the curves or profiles, write {layer: {experts, width}}."""
    cfg = args.cfg
    layout: Layout = store.read_json(args.layout)
    layers = {artifact["layer"]: artifact for artifact in map(store.read_json, args.measured)}
    entries = {layer: layer_entry(layout, layer) for layer in layers}
    multiple = cfg["width_multiple"]
    widths = {layer: layer_sizes.kept_width(cfg["width"], entry["width"], multiple) for layer, entry in entries.items()}
    if cfg["share"] is not None:
        sizes = allocation.best_size({layer: one["sizes"] for layer, one in layers.items()}, cfg["per"])
    else:
        total = sum(layer_sizes.kept_experts(cfg["experts"], entry["experts"]) for entry in entries.values())
        if cfg["budget"] == "usage":
            kept = allocation.by_usage({layer: one["usage"] for layer, one in layers.items()}, total, cfg["max_size"])
        else:
            kept = allocation.by_error({layer: one["sizes"] for layer, one in layers.items()}, total)
        sizes = {layer: (m, widths[layer]) for layer, m in kept.items()}
    chosen: dict[str, LayerSize] = {str(layer): {"experts": m, "width": width} for layer, (m, width) in sizes.items()}
    budget: Budget = {"layers": chosen}
    store.write_json(args.out, budget, args.provenance)


if __name__ == "__main__":
    command.run(main)
