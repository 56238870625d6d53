"""Fit the merged experts of one solved layer further, to the layer's original output.

python -m stages.refine --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --solved LAYER.safetensors --out LAYER.safetensors

A killed refine resumes from scratch/refine/<digest of its inputs and parameters>/.
"""

import argparse
from pathlib import Path

from mergemoe import devices
from mergemoe.artifacts import digests, store
from mergemoe.calibration.open_layer import open_layer, router_of
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.refine_records import LayerRefine
from mergemoe.reconstruction.refine import refine
from stages.support import command


@command.stage("refine", __doc__, "layout", "capture", "solved", also=["layer"], pair=True)
def main(args: argparse.Namespace) -> Path:
    """Read experts, the solved layer and activations, refine, write the weights and their record."""
    cfg = {key: value for key, value in args.cfg.items() if key != "by"}
    device = devices.set_up_torch(cfg.pop("threads"), args.device)
    layout: Layout = store.read_json(args.layout)
    layer, solved = int(args.layer), store.read_tensors(args.solved)
    router = router_of(layout, layer, solved, device)
    scratch = Path("scratch", "refine", digests.digest_json(args.provenance))
    with open_layer(layout, layer, args.capture, device) as opened:
        experts, reader, act = opened.experts, opened.reader, opened.act
        tensors, record = refine(experts, solved, reader, act, router=router, scratch=scratch, **cfg)
    refined: LayerRefine = {"layer": layer, **record}
    store.write_tensors(args.out, tensors, args.provenance)
    store.write_json(args.out.removesuffix(".safetensors") + ".json", refined, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
