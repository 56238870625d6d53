"""Run the full model over the held-out text, for fidelity to compare with.

python -m stages.reference --cfg JSON --code DIGEST --layout LAYOUT.json --text FILE --out FOLDER

The folder gets final.safetensors (tokens, final hidden states) and, per MoE layer, its experts' inputs.
"""

import argparse
import shutil
from pathlib import Path

import torch

from mergemoe import devices
from mergemoe.artifacts import atomic, digests, store
from mergemoe.calibration import token_sequences
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.checkpoints import recorded_folder
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layerwise_forward import final_hidden
from mergemoe.moe.layout_types import Layout
from stages.support import command


@command.stage("reference", __doc__, "layout", many=["text"])
def main(args: argparse.Namespace) -> Path:
    """Draw the held-out sequences, stream the model, write the folder whole."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    original = recorded_folder.open_original(layout)
    tokenizer = open_tokenizer(original)
    sequences = token_sequences.sequences_from_source(tokenizer, layout["vocab_size"], **args.cfg["heldout"])
    ids, mask = torch.tensor(sequences.ids, dtype=torch.int32), torch.tensor(sequences.mask, dtype=torch.uint8)
    layered = LayeredModel(original, getattr(torch, args.cfg["dtype"]), device)
    batches = batches_of(ids, mask, args.cfg["batch_tokens"], device)
    scratch = Path("scratch", "reference", digests.digest_json(args.provenance))
    finished, hidden = capture(layered, layout, batches, torch.zeros(len(ids)), scratch, args.provenance)
    final = torch.cat([final_hidden(layered, b, h).cpu() for b, h in zip(batches, hidden, strict=True)])
    with atomic.atomic(args.out) as folder:
        folder.mkdir()
        for path in finished.values():
            shutil.copyfile(path, folder / path.name)  # the scratch folder stays whole until all is in place
        tensors = {"input_ids": ids, "attention_mask": mask, "final": final}
        store.write_tensors(folder / "final.safetensors", tensors, args.provenance)
    return scratch


if __name__ == "__main__":
    command.run(main)
