"""Score one model on one task of lm-eval.

python -m stages.evaluate --cfg JSON --code DIGEST --task NAME --model MODEL --made MADE.json --files FILE ...
    --out SCORES.json

MODEL is the full checkpoint, a folder or a hub model's id, or the folder of a compressed one. MADE is the artifact that
lists the sha256 of its files: the layout of the full one, provenance.json of a compressed one. FILES define the task if
it is not lm-eval's own, or are its data.
"""

import argparse

import torch

from mergemoe import devices
from mergemoe.artifacts import store
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.checkpoints import recorded_folder
from mergemoe.compressed.loading import load
from mergemoe.evaluation import lm_eval_run, lm_eval_tasks
from stages.support import command


@command.stage("evaluate", __doc__, "made", many=["files"], also=["task", "model"])
def main(args: argparse.Namespace) -> None:
    """Find the task, load the model, score it, write the scores."""
    cfg = dict(args.cfg)
    device = devices.set_up_torch(cfg.pop("threads"), args.device)
    made = store.read_json(args.made)
    folder = recorded_folder.open_scored(args.model, made)
    dtype = getattr(torch, cfg.pop("dtype"))
    run = {key: cfg[key] for key in ("fewshot", "limit", "batch_size")}
    with lm_eval_tasks.open_task(args.task, cfg["include"], cfg["data_files"], cfg["fewshot"]) as task:
        model = load(folder, device, dtype)
        tokenizer = open_tokenizer(folder)
        scored = lm_eval_run.score_task(model, tokenizer, task, **run)
    store.write_json(args.out, {"task": args.task, "settings": cfg, **scored}, args.provenance)


if __name__ == "__main__":
    command.run(main)
