"""What vLLM computes: python vllm_scores.py ASKED.json, in its environment; see answers.py."""

import os

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

from answers import answer
from vllm import LLM, SamplingParams

USUAL = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_num_seqs": 4,
    "max_model_len": 128,
}


def computed(folder, asked):
    model = LLM(folder, **USUAL | asked["options"])
    given = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    how = SamplingParams(max_tokens=asked["new"], prompt_logprobs=0, temperature=0, ignore_eos=True, detokenize=False)
    found = model.generate(given, how, use_tqdm=False)
    return {
        "scores": [
            [logprobs[token].logprob for logprobs, token in zip(one.prompt_logprobs[1:], prompt[1:], strict=True)]
            for one, prompt in zip(found, asked["prompts"], strict=True)
        ],
        "continued": [list(one.outputs[0].token_ids) for one in found],
    }


answer(computed)
