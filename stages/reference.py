"""Run the full model over the held-out text: what fidelity compares with.

python -m stages.reference --cfg JSON --code DIGEST --layout LAYOUT.json --text FILE --out FOLDER

The folder gets final.safetensors (tokens, final hidden states) and, per MoE layer, its experts' inputs.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer

from mergemoe import atomic, checkpoint, payloads, runtime, store, text
from mergemoe.capture import batches_of, capture
from mergemoe.forward import final_hidden
from mergemoe.stream import LayeredModel
from stages import common


@common.stage("reference", __doc__, "layout", many=["text"])
def main(args: argparse.Namespace) -> Path:
    """Draw the held-out sequences, stream the model, write the folder whole."""
    device = runtime.start(args.cfg["threads"], args.device)
    layout = store.read_json(args.layout)
    original = checkpoint.locate(layout["path"], layout.get("revision"))
    store.check_files(original, layout["files"], original=True)
    tokenizer = AutoTokenizer.from_pretrained(original, trust_remote_code=False)
    sequences = text.from_source(tokenizer, **args.cfg["heldout"])
    ids, mask = torch.tensor(sequences.ids, dtype=torch.int32), torch.tensor(sequences.mask, dtype=torch.uint8)
    layered = LayeredModel(original, getattr(torch, args.cfg["dtype"]), device)
    batches = batches_of(ids, mask, args.cfg["batch_tokens"], device)
    scratch = Path("scratch", "reference", payloads.digest_json(args.provenance))
    finished, hidden = capture(layered, layout, batches, torch.zeros(len(ids)), scratch, args.provenance)
    final = torch.cat([final_hidden(layered, b, h).cpu() for b, h in zip(batches, hidden, strict=True)])
    with atomic.atomic(args.out) as folder:
        folder.mkdir()
        for path in finished.values():
            shutil.copyfile(path, folder / path.name)  # scratch stays whole until all is in place
        tensors = {"input_ids": ids, "attention_mask": mask, "final": final}
        store.write_tensors(folder / "final.safetensors", tensors, args.provenance)
    return scratch


if __name__ == "__main__":
    common.run(main)
