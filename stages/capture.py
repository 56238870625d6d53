"""Run the model once over the calibration tokens; write one HDF5 file per MoE layer.

python -m stages.capture --cfg JSON --code DIGEST --layout LAYOUT.json --tokens TOKENS.safetensors --out FOLDER

A killed capture resumes from scratch/capture/<digest of its inputs and parameters>/.
"""

import argparse
import shutil
from pathlib import Path

import torch

from mergemoe import devices
from mergemoe.artifacts import atomic, digests, store
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.checkpoints import recorded_folder
from mergemoe.models.layered_model import LayeredModel
from mergemoe.moe.layout_types import Layout
from stages.support import command


@command.stage("capture", __doc__, "layout", "tokens")
def main(args: argparse.Namespace) -> Path:
    """Capture into the scratch folder, then move the layers into their folder, whole."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    tokens = store.read_tensors(args.tokens)
    original = recorded_folder.open_original(layout)
    layered = LayeredModel(original, getattr(torch, args.cfg["dtype"]), device)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], args.cfg["batch_tokens"], device)
    scratch = Path("scratch", "capture", digests.digest_json(args.provenance))
    finished, _ = capture(layered, layout, batches, tokens["heldout"], scratch, args.provenance)
    with atomic.atomic(args.out) as folder:
        folder.mkdir()
        for path in finished.values():
            shutil.copyfile(path, folder / path.name)  # the scratch folder stays whole until all is in place
    return scratch


if __name__ == "__main__":
    command.run(main)
