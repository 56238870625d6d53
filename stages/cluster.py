"""Group the experts of one layer.

python -m stages.cluster --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --budget [BUDGET.json] --out LAYER.json

The configuration's `experts` is the number kept or a share; null leaves the layer as it is. A BUDGET says it in its
place.
"""

import argparse

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.activation_file import Reader
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts
from mergemoe.grouping import cluster
from mergemoe.moe import layer_sizes
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import Problem
from stages.support import command


@command.stage("cluster", __doc__, "layout", "capture", "profile", many=["budget"], also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read experts, usage and activations, group, write the groups with their figures."""
    device = devices.start(args.cfg["threads"], args.device)
    layout, layer = store.read_json(args.layout), int(args.layer)
    profile = store.read_json(args.profile, layer)
    experts = read_experts(layout, layer, device).map(lambda matrices: matrices.float())
    whole = experts.up.shape[1]
    untouched = args.cfg["experts"] is None
    kept, width = (
        layer_sizes.kept_experts(args.cfg["experts"], len(experts)),
        layer_sizes.kept_width(args.cfg["width"], whole),
    )
    for path in args.budget:
        size = store.read_json(path)["layers"][str(layer)]
        kept, width = size["experts"], size["width"]
    with Reader(args.capture, layer) as reader:
        problem = Problem(experts, [], reader, Activation(**layer_entry(layout, layer)["activation"]))
        by = "none" if untouched else args.cfg["by"]
        router_groups = layer_entry(layout, layer)["router"]["groups"]
        expert_map = cluster.group_experts(by, kept, problem, profile, width, args.cfg["max_size"], router_groups)
        groups = cluster.describe_grouping(expert_map, profile["usage"], reader)
    needs = layer_sizes.needed_tokens(kept, width)
    payload = {
        "layer": layer,
        "by": args.cfg["by"],
        "untouched": untouched,
        "width": width,
        **groups,
        "needed_tokens": needs,
    }
    store.write_json(args.out, payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
