"""Draw the calibration sequences, and list the documents that they come from in a manifest beside the tokens.

python -m stages.calibrate --cfg JSON --code DIGEST --layout LAYOUT.json --text FILE --out TOKENS.safetensors
"""

import argparse

import torch

from mergemoe.artifacts import store
from mergemoe.calibration import token_sequences
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.checkpoints import recorded_folder
from stages.support import command


@command.stage("calibrate", __doc__, "layout", many=["text"], pair=True)
def main(args: argparse.Namespace) -> None:
    """Read the text, draw, mark held-out sequences, write tokens and manifest."""
    cfg = dict(args.cfg)
    holdout = cfg.pop("holdout")
    layout = store.read_json(args.layout)
    original = recorded_folder.open_original(layout, weights=False)
    tokenizer = open_tokenizer(original)
    sequences = token_sequences.sequences_from_source(tokenizer, layout["vocab_size"], **cfg)
    tensors = {
        "input_ids": torch.tensor(sequences.ids, dtype=torch.int32),
        "attention_mask": torch.tensor(sequences.mask, dtype=torch.uint8),
        "heldout": torch.tensor(token_sequences.heldout_rows(cfg["samples"], holdout, cfg["seed"]), dtype=torch.uint8),
    }
    store.write_tensors(args.out, tensors, args.provenance)
    manifest = {"documents": sequences.documents, "skipped": sequences.skipped}
    store.write_json(args.out.removesuffix(".safetensors") + ".json", manifest, args.provenance)


if __name__ == "__main__":
    command.run(main)
