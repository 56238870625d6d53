"""Measure how close a model is to the full one on the held-out text.

python -m stages.fidelity --cfg JSON --code DIGEST --layout LAYOUT.json --model MODEL --made MADE.json
    --reference FOLDER --out SCORES.json

MODEL and MADE are those of stages.evaluate. The full model gets only its perplexity.
"""

import argparse

import torch

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.capture import batches_of
from mergemoe.checkpoints import recorded_folder
from mergemoe.compressed.loading import load
from mergemoe.evaluation import fidelity
from mergemoe.models.stacks import layer_stacks
from mergemoe.moe.layout_types import Layout
from stages.support import command


@command.stage("fidelity", __doc__, "layout", "made", "reference", also=["model"])
def main(args: argparse.Namespace) -> None:
    """Run the model over the reference's tokens, compare, write the scores."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    layout: Layout = store.read_json(args.layout)
    made = store.read_json(args.made)
    folder = recorded_folder.open_scored(args.model, made)
    model = load(folder, device, getattr(torch, args.cfg["dtype"]))
    head = fidelity.logits_function(model)
    kept = store.read_tensors(f"{args.reference}/final.safetensors")
    ids, mask = kept["input_ids"], kept["attention_mask"]
    batches = batches_of(ids, mask, args.cfg["batch_tokens"], device)
    continued = layer_stacks(model)[-1].stack_inputs({"input_ids": ids, "attention_mask": mask})
    ids, mask = continued["input_ids"], continued["attention_mask"]
    if args.made == args.layout:
        scores, parts = fidelity.language_scores(head, kept["final"], ids, mask, device), {}
    else:
        states = fidelity.final_hidden_states(model, batches)
        scores = fidelity.language_scores(head, states, ids, mask, device, full_hidden=kept["final"])
        parts = fidelity.layer_errors(layout, folder, args.reference, device)
        errors = [part["output_error"] for part in parts.values()] or [0.0]  # a run may keep every expert
        scores["output_error"] = sum(errors) / len(errors)
    payload = {"task": "fidelity", "samples": int(mask[:, 1:].sum()), "scores": scores, "parts": parts}
    store.write_json(args.out, payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
