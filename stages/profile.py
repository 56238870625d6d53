"""Profile the experts of one layer: usage, weights, saliency, router geometry.

python -m stages.profile --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5 --out LAYER.json
"""

import argparse

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.profile import profile_layer
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts
from mergemoe.moe.expert_forward import Activation
from stages.support import command


@command.stage("profile", __doc__, "layout", "capture", also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read one layer's experts and activations, write its profile."""
    device = devices.start(args.cfg["threads"], args.device)
    layout, layer = store.read_json(args.layout), int(args.layer)
    with Reader(args.capture, layer) as reader:
        act = Activation(**layer_entry(layout, layer)["activation"])
        figures = profile_layer(reader, read_experts(layout, layer, device), act)
    store.write_json(args.out, {"layer": layer, **figures}, args.provenance)


if __name__ == "__main__":
    command.run(main)
