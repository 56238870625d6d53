"""Measure the error of one layer at several sizes, for a budget that is spent by error.

python -m stages.curve --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --out LAYER.json
"""

import argparse

import torch

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.open_layer import open_layer
from mergemoe.checkpoints.expert_weights import layer_entry
from mergemoe.grouping import curve
from mergemoe.moe import layer_sizes
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.records import LayerCurve, LayerProfile
from stages.support import command


@command.stage("curve", __doc__, "layout", "capture", "profile", also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read experts, usage and activations, write the held-out error of each size."""
    cfg, layer = args.cfg, int(args.layer)
    device = devices.set_up_torch(cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    profile: LayerProfile = store.read_json(args.profile, layer)
    entry = layer_entry(layout, layer)
    n, width, multiple = entry["experts"], entry["width"], cfg["width_multiple"]
    counted = layer_sizes.kept_width(cfg["width"], width, multiple)
    candidates = layer_sizes.measured_sizes(n, width, cfg["share"], counted, multiple, cfg["max_size"])
    how = cfg["max_size"], cfg.get("search", "full")
    with open_layer(layout, layer, args.capture, device, torch.float32) as opened:
        sizes = list(curve.error_curve(cfg["by"], candidates, opened.problem(), profile, *how))
    measured: LayerCurve = {"layer": layer, "sizes": sizes}
    store.write_json(args.out, measured, args.provenance)


if __name__ == "__main__":
    command.run(main)
