"""Measure what one layer loses at other sizes, for a budget that is spent by that.

python -m stages.curve --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --out LAYER.json
"""

import argparse

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.activation_file import Reader
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts
from mergemoe.grouping import curve
from mergemoe.moe import layer_sizes
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import Problem
from stages.support import command


@command.stage("curve", __doc__, "layout", "capture", "profile", also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read experts, usage and activations, write the held-out error of each size."""
    cfg, layout, layer = args.cfg, store.read_json(args.layout), int(args.layer)
    device = devices.start(cfg["threads"], args.device)
    profile = store.read_json(args.profile, layer)
    experts = read_experts(layout, layer, device).map(lambda matrices: matrices.float())
    whole = experts.up.shape[1]
    counted = layer_sizes.kept_width(cfg["width"], whole)
    candidates = layer_sizes.measured_sizes(len(experts), whole, cfg["share"], counted, cfg["max_size"])
    with Reader(args.capture, layer) as reader:
        problem = Problem(experts, [], reader, Activation(**layer_entry(layout, layer)["activation"]))
        sizes = list(curve.error_curve(cfg["by"], candidates, problem, profile, cfg["max_size"]))
    store.write_json(args.out, {"layer": layer, "sizes": sizes}, args.provenance)


if __name__ == "__main__":
    command.run(main)
