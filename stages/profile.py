"""Profile the experts of one layer: usage, weights, saliency, router geometry.

python -m stages.profile --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5 --out LAYER.json
"""

import argparse

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.open_layer import open_layer
from mergemoe.calibration.profile import profile_layer
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.records import LayerProfile
from stages.support import command


@command.stage("profile", __doc__, "layout", "capture", also=["layer"])
def main(args: argparse.Namespace) -> None:
    """Read one layer's experts and activations, write its profile."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    layer = int(args.layer)
    with open_layer(layout, layer, args.capture, device) as opened:
        figures = profile_layer(opened.reader, opened.experts, opened.act)
    profile: LayerProfile = {"layer": layer, **figures}
    store.write_json(args.out, profile, args.provenance)


if __name__ == "__main__":
    command.run(main)
