"""Tiny random models, one per architecture: 8 experts, two or three layers, hidden size 32.

`initializer_range` 0.2 keeps the router's choices well apart.
"""

from pathlib import Path

import torch
import transformers as T

from mergemoe.families import model_class

BASE = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
MHA = {**BASE, "num_key_value_heads": 4}
EXPERTS = dict(num_experts=8, num_experts_per_tok=3)
LOCAL = dict(num_local_experts=8, num_experts_per_tok=3)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=3)
DENSE_AND_MOE = dict(intermediate_size=48, moe_intermediate_size=24)
MLA = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
ONE_GROUP = dict(n_group=1, topk_group=1)


def without(d, *keys):
    return {k: v for k, v in d.items() if k not in keys}


# Functions, so that asking for one architecture builds only that one.
CONFIGS = {
    "qwen2_moe": lambda: T.Qwen2MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, shared_expert_intermediate_size=40, decoder_sparse_step=1
    ),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, head_dim=8, norm_topk_prob=True, mlp_only_layers=[0]
    ),
    "mixtral": lambda: T.MixtralConfig(
        **BASE, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    "olmoe": lambda: T.OlmoeConfig(**BASE, **EXPERTS, intermediate_size=24),
    "deepseek_v2": lambda: T.DeepseekV2Config(
        **MHA,
        **MLA,
        **DENSE_AND_MOE,
        **ROUTED,
        **ONE_GROUP,
        n_shared_experts=2,
        first_k_dense_replace=1,
        q_lora_rank=None,
        topk_method="greedy",
        norm_topk_prob=False,
    ),
    "deepseek_v2_group": lambda: T.DeepseekV2Config(
        **MHA,
        **MLA,
        **DENSE_AND_MOE,
        **ROUTED,
        n_shared_experts=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
    ),
    "deepseek_v3": lambda: T.DeepseekV3Config(
        **MHA,
        **MLA,
        **DENSE_AND_MOE,
        **ROUTED,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.5,
    ),
    "gpt_oss": lambda: T.GptOssConfig(
        **BASE,
        **LOCAL,
        head_dim=8,
        intermediate_size=24,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "granitemoe": lambda: T.GraniteMoeConfig(**BASE, **LOCAL, intermediate_size=24),
    "phimoe": lambda: T.PhimoeConfig(**BASE, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2),
    "jamba": lambda: T.JambaConfig(
        **BASE,
        intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=0,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_d_conv=2,
        mamba_expand=2,
        use_mamba_kernels=False,
    ),
    "glm4_moe": lambda: T.Glm4MoeConfig(
        **BASE, **DENSE_AND_MOE, **ROUTED, **ONE_GROUP, head_dim=8, n_shared_experts=1, first_k_dense_replace=1
    ),
    "ernie4_5_moe": lambda: T.Ernie4_5_MoeConfig(
        **BASE,
        **DENSE_AND_MOE,
        moe_num_experts=8,
        moe_k=3,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=2,
    ),
    "hunyuan_v1_moe": lambda: T.HunYuanMoEV1Config(**BASE, head_dim=8, intermediate_size=24, num_experts=8, moe_topk=3),
    "lfm2_moe": lambda: T.Lfm2MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]
    ),
    "qwen3_next": lambda: T.Qwen3NextConfig(
        **BASE,
        **DENSE_AND_MOE,
        **EXPERTS,
        head_dim=8,
        shared_expert_intermediate_size=24,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "nemotron_h": lambda: T.NemotronHConfig(
        **without(BASE, "num_hidden_layers"),
        **DENSE_AND_MOE,
        **ROUTED,
        **ONE_GROUP,
        head_dim=8,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        moe_shared_expert_intermediate_size=24,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
    ),
    "minimax": lambda: T.MiniMaxConfig(
        **BASE,
        head_dim=8,
        intermediate_size=24,
        num_local_experts=8,
        num_experts_per_tok=2,
        block_size=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "minimax_m2": lambda: T.MiniMaxM2Config(
        **BASE, head_dim=8, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2
    ),
    "dots1": lambda: T.Dots1Config(
        **BASE, **DENSE_AND_MOE, **ROUTED, **ONE_GROUP, head_dim=8, n_shared_experts=1, first_k_dense_replace=1
    ),
    "flex_olmo": lambda: T.FlexOlmoConfig(**BASE, **EXPERTS, intermediate_size=24),
    "dbrx": lambda: T.DbrxConfig(
        vocab_size=97,
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=128,
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(ffn_hidden_size=24, moe_num_experts=8, moe_top_k=3, hidden_size=32),
    ),
    "llama4": lambda: T.Llama4TextConfig(
        **BASE,
        head_dim=8,
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        layer_types=None,
        attention_chunk_size=64,
    ),
    "longcat_flash": lambda: T.LongcatFlashConfig(
        **without(MHA, "num_hidden_layers"),
        **MLA,
        num_layers=3,
        num_hidden_layers=6,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=24,
        n_routed_experts=8,
        zero_expert_num=2,
        moe_topk=3,
        q_lora_rank=16,
        head_dim=8,
    ),
    "jetmoe": lambda: T.JetMoeConfig(
        **without(BASE, "num_attention_heads"),
        kv_channels=8,
        intermediate_size=24,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
}


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save the random model of one architecture."""
    torch.manual_seed(0)
    model = model_class(CONFIGS[name]())._from_config(CONFIGS[name](), dtype=dtype)
    model.save_pretrained(folder, max_shard_size="60KB")  # several files
    return folder
