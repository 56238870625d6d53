"""What transformers 4 computes: python transformers4_scores.py ASKED.json, in its environment; see answers.py."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from answers import answer
from transformers import AutoModelForCausalLM


@torch.no_grad()
def computed(folder, asked):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **asked["options"]
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    prompts = torch.tensor(asked["prompts"])
    scores = model(prompts).logits[:, :-1].log_softmax(-1)
    return {"scores": scores.gather(-1, prompts[:, 1:, None])[..., 0].tolist()}


answer(computed)
