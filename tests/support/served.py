"""Small random models for engines, what mergemoe makes of them, and what transformers computes.

They are larger than those of `architectures`: engines have kernels for certain sizes of a head only.
"""

import json
from pathlib import Path

import torch
import transformers as T
from random_groups import random_groups

import mergemoe
from mergemoe.compressed.assemble import assemble
from mergemoe.models import layout
from mergemoe.models.families import model_class

BASE = dict(
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.1,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
DENSE_AND_MOE = dict(intermediate_size=192, moe_intermediate_size=64)
EXPERTS = dict(num_experts=16, num_experts_per_tok=4)
LOCAL = dict(num_local_experts=16, num_experts_per_tok=4)
MLA = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)  # as published
ROUTED = dict(n_routed_experts=16, num_experts_per_tok=4)
HEADS = {**BASE, "head_dim": 32}

CONFIGS = {
    "qwen2_moe": lambda: T.Qwen2MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, shared_expert_intermediate_size=96, decoder_sparse_step=1
    ),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **HEADS, **DENSE_AND_MOE, **EXPERTS, norm_topk_prob=True, mlp_only_layers=[0]
    ),
    "mixtral": lambda: T.MixtralConfig(**BASE, **LOCAL, intermediate_size=64, sliding_window=None),
    "olmoe": lambda: T.OlmoeConfig(**BASE, **EXPERTS, intermediate_size=64),
    "deepseek_v3": lambda: T.DeepseekV3Config(
        **{**BASE, "num_key_value_heads": 4},
        **MLA,
        **ROUTED,
        **DENSE_AND_MOE,
        q_lora_rank=32,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        topk_method="noaux_tc",  # as published: transformers' class writes neither, and vLLM reads both
        scoring_func="sigmoid",
    ),
    "deepseek_v2": lambda: T.DeepseekV2Config(
        **{**BASE, "num_key_value_heads": 4},
        **MLA,
        **ROUTED,
        **DENSE_AND_MOE,
        q_lora_rank=None,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        topk_method="greedy",
        norm_topk_prob=False,
    ),
    "glm4_moe": lambda: T.Glm4MoeConfig(
        **HEADS, **ROUTED, **DENSE_AND_MOE, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1
    ),
    "granitemoe": lambda: T.GraniteMoeConfig(**BASE, **LOCAL, intermediate_size=64),
    "gpt_oss": lambda: T.GptOssConfig(**HEADS, **LOCAL, intermediate_size=64, sliding_window=128),
}
KNOWN_RULES = ("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe")  # rows of the router can go
PROMPTS = torch.randint(3, 512, (4, 48), generator=torch.Generator().manual_seed(3))
# Published checkpoints have the keys of transformers 4, which 5 reads and does not write.
PUBLISHED = {"qwen3_moe": {"num_local_experts": "num_experts", "dtype": "torch_dtype"}}
NEW = 8  # tokens of a continuation
CALIBRATION = torch.randint(3, 512, (16, 48), generator=torch.Generator().manual_seed(4))


WAYS = {
    "stock": {"method": "reap", "experts": 0.5},
    "slim": {"method": "slim", "width": 0.5},
    "compact": {"method": "mergemoe", "experts": 0.5, "ridge": 0.1},
}


def save_full(name: str, folder: Path) -> Path:
    """Save the random model of one architecture; biases and norms are random, too."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = model_class(config)._from_config(config, dtype=torch.float32)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for old, new in PUBLISHED.get(name, {}).items():
        content[new] = content.pop(old)
    path.write_text(json.dumps(content))
    return folder


def save_compressed(full: Path, kind: str, folder: Path) -> Path:
    """Save what `compress` makes of a model in one of WAYS, or `uneven`: layers of different M and different groups."""
    if kind == "uneven":
        described = layout.describe_layout(full, digests=False)
        assemble(described, {entry["layer"]: random_groups(described, entry) for entry in described["layers"]}, folder)
        return folder
    model = mergemoe.load(full, "cpu", torch.float32)
    mergemoe.save(mergemoe.compress(model, CALIBRATION, **WAYS[kind]), folder)
    return folder


@torch.no_grad()
def computed(folder: Path) -> tuple[list[list[float]], list[list[int]]]:
    """What transformers computes in float32: log-probabilities of the prompts' tokens, and a greedy continuation."""
    model = mergemoe.load(folder, "cpu", torch.float32)
    scores = model(PROMPTS).logits[:, :-1].log_softmax(-1)
    continued = model.generate(PROMPTS, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    return scores.gather(-1, PROMPTS[:, 1:, None])[..., 0].tolist(), continued[:, PROMPTS.shape[1] :].tolist()
