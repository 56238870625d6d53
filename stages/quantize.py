"""Round the experts of one solved or refined layer to few bits.

python -m stages.quantize --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --solved LAYER.safetensors --out LAYER.safetensors

A killed descent resumes from scratch/quantize/<digest of its inputs and parameters>/.
"""

import argparse
from pathlib import Path

from mergemoe import devices
from mergemoe.artifacts import digests, store
from mergemoe.calibration.open_layer import open_layer, router_of
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.quantize_record import LayerQuantize
from mergemoe.quantization.quantize import quantize
from stages.support import command


@command.stage("quantize", __doc__, "layout", "capture", "solved", also=["layer"], pair=True)
def main(args: argparse.Namespace) -> Path:
    """Read experts, the layer and activations, quantize, write the weights and their record."""
    cfg = dict(args.cfg)
    device = devices.set_up_torch(cfg.pop("threads"), args.device)
    layout: Layout = store.read_json(args.layout)
    layer, solved = int(args.layer), store.read_tensors(args.solved)
    router = router_of(layout, layer, solved, device)
    scratch = Path("scratch", "quantize", digests.digest_json(args.provenance))
    with open_layer(layout, layer, args.capture, device) as opened:
        experts, reader, act = opened.experts, opened.reader, opened.act
        tensors, record = quantize(experts, solved, reader, act, router=router, scratch=scratch, **cfg)
    quantized: LayerQuantize = {"layer": layer, **record}
    store.write_tensors(args.out, tensors, args.provenance)
    store.write_json(args.out.removesuffix(".safetensors") + ".json", quantized, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
