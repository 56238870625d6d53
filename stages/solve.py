"""Merge the groups of one layer. Starts fast because it imports neither transformers nor lm-eval nor datasets.

python -m stages.solve --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --cluster LAYER.json --out LAYER.safetensors

A killed iterative solve resumes from scratch/solve/<digest of its inputs and parameters>/.
"""

import argparse
from pathlib import Path

from mergemoe import devices
from mergemoe.artifacts import digests, store
from mergemoe.calibration.open_layer import open_layer
from mergemoe.checkpoints.expert_weights import layer_entry, read_router
from mergemoe.merging.solve import solve, untouched
from mergemoe.moe import router_rule
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.records import LayerGrouping, LayerProfile, LayerSolve
from stages.support import command


@command.stage("solve", __doc__, "layout", "capture", "profile", "cluster", also=["layer"], pair=True)
def main(args: argparse.Namespace) -> Path:
    """Read experts, groups and activations, solve, write merged weights and their record."""
    cfg = dict(args.cfg)
    device = devices.set_up_torch(cfg.pop("threads"), args.device)
    layout: Layout = store.read_json(args.layout)
    layer, entry, router = int(args.layer), layer_entry(layout, int(args.layer)), None
    grouping: LayerGrouping = store.read_json(args.cluster, layer)
    profile: LayerProfile = store.read_json(args.profile, layer)
    if cfg.get("width") == "auto":
        cfg |= {"width": grouping["width"] / entry["width"], "width_multiple": 1}
    if cfg.get("routing", "preserved") != "preserved" and not grouping["untouched"]:
        router = router_rule.layer_router(entry, read_router(layout, layer, device))
    scratch = Path("scratch", "solve", digests.digest_json(args.provenance))
    with open_layer(layout, layer, args.capture, device) as opened:
        experts, reader, act = opened.experts, opened.reader, opened.act
        if grouping["untouched"]:
            tensors, record = untouched(experts, reader)
        else:
            expert_map, usage = grouping["expert_map"], profile["usage"]
            tensors, record = solve(experts, expert_map, usage, reader, act, router=router, scratch=scratch, **cfg)
    solved: LayerSolve = {"layer": layer, **record}
    store.write_tensors(args.out, tensors, args.provenance)
    store.write_json(args.out.removesuffix(".safetensors") + ".json", solved, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
