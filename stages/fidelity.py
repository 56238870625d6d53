"""Measure how near a model is to the full one on the held-out text.

python -m stages.fidelity --cfg JSON --code DIGEST --layout LAYOUT.json --model FOLDER --made MADE.json
    --reference FOLDER --out SCORES.json

MODEL and MADE as in stages.evaluate. The full model itself gets its perplexity alone.
"""

from typing import Any

import torch

from mergemoe import fidelity, runtime, store
from mergemoe.capture import batches_of
from mergemoe.loading import load
from stages import common


def main() -> None:
    """Run the model over the reference's tokens, compare, write the scores."""
    args = common.arguments(__doc__, "layout", "made", "reference", also=["model"])
    device = runtime.start(args.cfg["threads"], args.device)
    layout = store.read_json(args.layout)
    store.check_files(args.model, store.read_json(args.made)["files"])
    model = load(args.model, device, getattr(torch, args.cfg["dtype"]))
    head: Any = model.get_output_embeddings()
    kept = store.read_tensors(f"{args.reference}/final.safetensors")
    ids, mask = kept["input_ids"], kept["attention_mask"]
    if args.made == args.layout:
        scores, parts = fidelity.language_scores(head, kept["final"], ids, mask, device), {}
    else:
        states = fidelity.final_states(model, batches_of(ids, mask, args.cfg["batch_tokens"], device))
        scores = fidelity.language_scores(head, states, ids, mask, device, full_hidden=kept["final"])
        parts = fidelity.layer_errors(layout, args.model, args.reference, device)
        errors = [part["output_error"] for part in parts.values()] or [0.0]  # a run may keep every expert
        scores["output_error"] = sum(errors) / len(errors)
    payload = {"task": "fidelity", "samples": int(mask[:, 1:].sum()), "scores": scores, "parts": parts}
    store.write_json(args.out, payload, common.provenance("fidelity", args))


if __name__ == "__main__":
    common.run(main)
