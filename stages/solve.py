"""Merge the groups of one layer; imports neither transformers nor lm-eval nor datasets.

python -m stages.solve --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --cluster LAYER.json --out LAYER.safetensors

A killed solve that is iterative goes on from scratch/solve/<digest of its inputs and parameters>/.
"""

import argparse
from pathlib import Path

from mergemoe import devices
from mergemoe.artifacts import digests, store
from mergemoe.calibration.activation_file import Reader
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts, read_router
from mergemoe.merging.solve import solve, untouched
from mergemoe.moe import router_rule
from mergemoe.moe.expert_forward import Activation
from stages.support import command


@command.stage("solve", __doc__, "layout", "capture", "profile", "cluster", also=["layer"], pair=True)
def main(args: argparse.Namespace) -> Path:
    """Read experts, groups and activations, solve, write merged weights and their record."""
    cfg = dict(args.cfg)
    device = devices.start(cfg.pop("threads"), args.device)
    layout, layer = store.read_json(args.layout), int(args.layer)
    grouping = store.read_json(args.cluster, layer)
    entry, router = layer_entry(layout, layer), None
    if cfg.get("width") == "auto":
        cfg["width"] = grouping["width"] / entry["width"]
    if cfg.get("routing", "preserved") != "preserved" and not grouping["untouched"]:
        router = router_rule.layer_router(entry, read_router(layout, layer, device))
    scratch = Path("scratch", "solve", digests.digest_json(args.provenance))
    experts = read_experts(layout, layer, device)
    with Reader(args.capture, layer) as reader:
        if grouping["untouched"]:
            tensors, record = untouched(experts, reader)
        else:
            usage = store.read_json(args.profile, layer)["usage"]
            act = Activation(**entry["activation"])
            tensors, record = solve(
                experts, grouping["expert_map"], usage, reader, act, router=router, scratch=scratch, **cfg
            )
    store.write_tensors(args.out, tensors, args.provenance)
    store.write_json(args.out.removesuffix(".safetensors") + ".json", {"layer": layer, **record}, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
