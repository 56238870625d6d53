"""Let a model continue held-out prompts, and measure the continuations.

python -m stages.generate --cfg JSON --code DIGEST --layout LAYOUT.json --model MODEL --made MADE.json
    --reference FOLDER --out SCORES.json

MODEL and MADE are those of stages.evaluate. The full model, which judges the continuations, is that of LAYOUT.
"""

import argparse

import torch

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.checkpoints import recorded_folder
from mergemoe.compressed.loading import load
from mergemoe.evaluation import generation
from stages.support import command

SHOWN = 8  # continuations that the artifact has as text


@command.stage("generate", __doc__, "layout", "made", "reference", also=["model"])
def main(args: argparse.Namespace) -> None:
    """Continue the prompts, load the full model if it is another one, score, write."""
    device = devices.set_up_torch(args.cfg["threads"], args.device)
    settings, dtype = args.cfg["generation"], getattr(torch, args.cfg["dtype"])
    layout, made = store.read_json(args.layout), store.read_json(args.made)
    folder = recorded_folder.open_scored(args.model, made)
    original = recorded_folder.open_original(layout, weights=args.made != args.layout)
    kept = store.read_tensors(f"{args.reference}/final.safetensors")
    starts = generation.take_prompts(
        kept["input_ids"], kept["attention_mask"], settings["prompts"], settings["prompt_tokens"]
    )
    tokenizer = open_tokenizer(original)
    end, size = tokenizer.eos_token_id, args.cfg["batch_tokens"]
    model = load(folder, device, dtype)
    continued = generation.greedy_continuations(model, starts, settings["new_tokens"], end, size, device)
    if args.made != args.layout:
        del model  # two of them may not fit
        model = load(original, device, dtype)
    scores = generation.continuation_scores(continued, end) | generation.continuation_perplexity(
        model, starts, continued, size, device
    )
    texts = [
        {"prompt": tokenizer.decode(start), "text": tokenizer.decode(row)}
        for start, row in zip(starts[:SHOWN].tolist(), continued[:SHOWN], strict=True)
    ]
    payload = {"task": "generation", "samples": len(starts), "scores": scores, "continuations": texts}
    store.write_json(args.out, payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
