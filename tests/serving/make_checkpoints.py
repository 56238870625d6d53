"""Write small random models and what `mergemoe` makes of them, with the log-probabilities that transformers computes.

python tests/serving/make_checkpoints.py FOLDER [NAME ...]

An environment of an engine reads FOLDER/NAME/{full,stock,compact}/ and compares with FOLDER/NAME/expected.json. The
models are larger than those of the other tests: engines have kernels for certain head sizes only.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers as T

import mergemoe
from mergemoe.errors import UserError
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
        topk_method="noaux_tc",  # as published; transformers' class does not write it, and vLLM asks for it
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
    "ernie4_5_moe": lambda: T.Ernie4_5_MoeConfig(
        **BASE,
        **DENSE_AND_MOE,
        moe_num_experts=16,
        moe_k=4,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=2,
    ),
    "minimax_m2": lambda: T.MiniMaxM2Config(**HEADS, **LOCAL, intermediate_size=64),
}
PROMPTS = torch.randint(3, 512, (4, 48), generator=torch.Generator().manual_seed(3))
CALIBRATION = torch.randint(3, 512, (16, 48), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def expected(folder: Path) -> list[list[float]]:
    """The log-probability of each token of the prompts but the first, in float32."""
    model = mergemoe.load(folder, "cpu", torch.float32)
    scores = model(PROMPTS).logits[:, :-1].log_softmax(-1)
    return scores.gather(-1, PROMPTS[:, 1:, None])[..., 0].tolist()


def make(name: str, folder: Path) -> None:
    """One architecture: the full model, a stock checkpoint, and a compact one whose layers differ."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = model_class(config)._from_config(config, dtype=torch.float32)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn_like(tensor))
    model.save_pretrained(folder / "full")
    made = {"full": folder / "full"}
    for kind, how in {
        "stock": {"method": "reap", "experts": 0.5},
        "slim": {"method": "slim", "width": 0.5},
        "compact": {"method": "mergemoe", "experts": 0.5, "layers": [1, 2], "ridge": 0.1},
    }.items():
        model = mergemoe.load(folder / "full", "cpu", torch.float32)
        try:
            mergemoe.compress(model, CALIBRATION, **how)
        except UserError as error:
            print(f"{name}/{kind}: {error}")
            continue
        mergemoe.save(model, folder / kind)
        made[kind] = folder / kind
    facts = {"prompts": PROMPTS.tolist(), "expected": {kind: expected(path) for kind, path in made.items()}}
    (folder / "expected.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for name in names or CONFIGS:
        make(name, Path(folder, name))
