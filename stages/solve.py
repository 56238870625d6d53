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
from mergemoe.merging.solve import solve
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
    if grouping["untouched"]:
        cfg = {"method": "none"}
    entry, router = layer_entry(layout, layer), None
    if cfg.get("width") == "auto":
        cfg["width"] = grouping["width"] / entry["width"]
    if cfg.get("routing", "preserved") != "preserved":
        router = router_rule.of_layer(entry, read_router(layout, layer, device))
    scratch = Path("scratch", "solve", digests.digest_json(args.provenance))
    with Reader(args.capture, layer) as reader:
        tensors, record = solve(
            read_experts(layout, layer, device),
            grouping["expert_map"],
            store.read_json(args.profile, layer)["usage"],
            reader,
            Activation(**entry["activation"]),
            router=router,
            scratch=scratch,
            **cfg,
        )
    store.write_tensors(args.out, tensors, args.provenance)
    store.write_json(args.out.removesuffix(".safetensors") + ".json", {"layer": layer, **record}, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
