"""Tiny random models, one per architecture: 8 experts, two or three layers, hidden size 32.

`initializer_range` 0.2 keeps the router's choices well apart. A name is the `model_type`, with the rule of the
router behind it where an architecture stands here twice.
"""

import json
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import load_file, save_file

from mergemoe.models.families import model_class

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
HEADS = {**BASE, "head_dim": 8}
MHA = {**BASE, "num_key_value_heads": 4}
EXPERTS = dict(num_experts=8, num_experts_per_tok=3)
LOCAL = dict(num_local_experts=8, num_experts_per_tok=3)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=3)
DENSE_AND_MOE = dict(intermediate_size=48, moe_intermediate_size=24)
FIRST_DENSE = dict(**DENSE_AND_MOE, mlp_layer_types=["dense", "sparse", "sparse"])
ONE_GROUP = dict(n_group=1, topk_group=1)
TWO_GROUPS = dict(n_group=2, topk_group=1)
MLA = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
INDEXED = dict(index_topk=8, index_head_dim=8, index_n_heads=2)  # attention to a token's 8 best tokens
DEEPSEEK = dict(**MHA, **MLA, **ROUTED, q_lora_rank=16, n_shared_experts=1)
SLIDING = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
LINEAR = dict(layer_types=["linear_attention", "full_attention", "linear_attention"])
# Two layers: gated delta attention behind merged experts enlarges their last bits a hundredfold.
GATED_DELTA = dict(
    num_hidden_layers=2,
    layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
SHARED = dict(shared_expert_intermediate_size=24)
MROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]))
EYES = dict(hidden_size=16, intermediate_size=16, patch_size=4)
DEEP_EYES = dict(**EYES, depth=1, num_heads=2, out_hidden_size=32)
TALL_EYES = dict(**EYES, num_hidden_layers=1, num_attention_heads=2)


def without(d, *keys):
    return {k: v for k, v in d.items() if k not in keys}


def text(name):
    """Return the settings of one architecture, as the text half of another."""
    return CONFIGS[name]().to_dict()


# Functions, so that asking for one architecture builds only that one.
CONFIGS = {
    "qwen2_moe": lambda: T.Qwen2MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, shared_expert_intermediate_size=40, decoder_sparse_step=1
    ),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **HEADS, **DENSE_AND_MOE, **EXPERTS, norm_topk_prob=True, mlp_only_layers=[0]
    ),
    "mixtral": lambda: T.MixtralConfig(
        **BASE, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    "olmoe": lambda: T.OlmoeConfig(**BASE, **EXPERTS, intermediate_size=24),
    "deepseek_v2": lambda: T.DeepseekV2Config(
        **{**DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2},
        **DENSE_AND_MOE,
        **ONE_GROUP,
        first_k_dense_replace=1,
        topk_method="greedy",
        norm_topk_prob=False,
    ),
    "deepseek_v2_group": lambda: T.DeepseekV2Config(
        **{**DEEPSEEK, "n_shared_experts": 2},
        **DENSE_AND_MOE,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
    ),
    "deepseek_v3": lambda: T.DeepseekV3Config(
        **DEEPSEEK, **DENSE_AND_MOE, **TWO_GROUPS, first_k_dense_replace=1, routed_scaling_factor=2.5
    ),
    "deepseek_v32": lambda: T.DeepseekV32Config(**DEEPSEEK, **FIRST_DENSE, **TWO_GROUPS, **INDEXED),
    "deepseek_v4": lambda: T.DeepseekV4Config(
        **without(BASE, "num_key_value_heads"),
        **ROUTED,
        **INDEXED,
        num_key_value_heads=1,
        head_dim=16,
        moe_intermediate_size=24,
        q_lora_rank=16,
        o_groups=2,
        o_lora_rank=8,
        n_shared_experts=1,
        sliding_window=8,
        swiglu_limit=1.0,
        hc_mult=2,
        hc_sinkhorn_iters=4,
        mlp_layer_types=["hash_moe", "moe", "moe"],
    ),
    "gpt_oss": lambda: T.GptOssConfig(**HEADS, **LOCAL, **SLIDING, intermediate_size=24),
    "granitemoe": lambda: T.GraniteMoeConfig(**BASE, **LOCAL, intermediate_size=24),
    "granitemoeshared": lambda: T.GraniteMoeSharedConfig(
        **BASE, **LOCAL, intermediate_size=24, shared_intermediate_size=24
    ),
    "granitemoe_swa": lambda: T.GraniteMoeSWAConfig(
        **BASE, **LOCAL, intermediate_size=24, shared_intermediate_size=24, sliding_window=8
    ),
    "granitemoehybrid": lambda: T.GraniteMoeHybridConfig(
        **BASE,
        **LOCAL,
        intermediate_size=24,
        shared_intermediate_size=24,
        layer_types=["mamba", "attention", "mamba"],
        mamba_n_heads=4,
        mamba_d_state=8,
        mamba_d_head=16,
        mamba_d_conv=2,
        mamba_chunk_size=16,
    ),
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
        **HEADS, **DENSE_AND_MOE, **ROUTED, **ONE_GROUP, n_shared_experts=1, first_k_dense_replace=1
    ),
    "glm4_moe_lite": lambda: T.Glm4MoeLiteConfig(**DEEPSEEK, **FIRST_DENSE, **ONE_GROUP),
    "ernie4_5_moe": lambda: T.Ernie4_5_MoeConfig(
        **BASE,
        **DENSE_AND_MOE,
        moe_num_experts=8,
        moe_k=3,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=2,
    ),
    "hunyuan_v1_moe": lambda: T.HunYuanMoEV1Config(**HEADS, intermediate_size=24, num_experts=8, moe_topk=3),
    "hy_v3": lambda: T.HYV3Config(**HEADS, **FIRST_DENSE, **EXPERTS, num_shared_experts=1),
    "lfm2_moe": lambda: T.Lfm2MoeConfig(
        **BASE, **DENSE_AND_MOE, **EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]
    ),
    "qwen3_next": lambda: T.Qwen3NextConfig(**{**HEADS, **GATED_DELTA}, **DENSE_AND_MOE, **EXPERTS, **SHARED),
    "qwen3_5_moe_text": lambda: T.Qwen3_5MoeTextConfig(
        **{**HEADS, **GATED_DELTA}, **EXPERTS, **SHARED, moe_intermediate_size=24
    ),
    "qwen4_exp_text": lambda: T.Qwen4ExpTextConfig(
        **{**HEADS, **GATED_DELTA},
        **EXPERTS,
        **SHARED,
        moe_intermediate_size=24,
        hc_count=2,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=8,
        indexer_compress_ratio=2,
        ple_embed_dim=8,
        ple_layer_ids=[1],
        ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=2,
        split_ngram_parts=2,
        heads_per_ngram=2,
    ),
    "nemotron_h": lambda: T.NemotronHConfig(
        **without(HEADS, "num_hidden_layers"),
        **DENSE_AND_MOE,
        **ROUTED,
        **ONE_GROUP,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        moe_shared_expert_intermediate_size=24,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
    ),
    "minimax": lambda: T.MiniMaxConfig(
        **HEADS, **LINEAR, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, block_size=16
    ),
    "minimax_m2": lambda: T.MiniMaxM2Config(**HEADS, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2),
    "minimax_m3_vl_text": lambda: T.MiniMaxM3VLTextConfig(
        **HEADS,
        **LOCAL,
        rotary_dim=4,
        intermediate_size=24,
        dense_intermediate_size=48,
        shared_intermediate_size=24,
        swiglu_limit=1.0,
        index_n_heads=2,
        index_head_dim=8,
        index_block_size=4,
        index_topk_blocks=2,
        index_local_blocks=1,
        mlp_layer_types=["dense", "sparse", "sparse"],
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    ),
    "dots1": lambda: T.Dots1Config(
        **HEADS, **DENSE_AND_MOE, **ROUTED, **ONE_GROUP, n_shared_experts=1, first_k_dense_replace=1
    ),
    "dots3_note_text": lambda: T.Dots3NoteTextConfig(
        **DEEPSEEK,
        **FIRST_DENSE,
        **ONE_GROUP,
        **INDEXED,
        shared_experts_intermediate_size=24,
        head_dim=8,
        sliding_window=8,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_q_lora_rank=16,
        swa_kv_lora_rank=16,
        swa_head_dim=16,
        swa_qk_nope_head_dim=8,
        swa_v_head_dim=8,
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
    "llama4_text": lambda: T.Llama4TextConfig(
        **HEADS,
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
    "gemma4_text": lambda: T.Gemma4TextConfig(
        **HEADS,
        **DENSE_AND_MOE,
        global_head_dim=8,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=3,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=8,
    ),
    "aria_text": lambda: T.AriaTextConfig(
        **BASE, intermediate_size=24, moe_num_experts=8, moe_topk=3, moe_num_shared_experts=1
    ),
    "hy_v4": lambda: T.HYV4Config(
        **DEEPSEEK,
        **FIRST_DENSE,
        **ONE_GROUP,
        **INDEXED,
        swiglu_limit=1.0,
        hc_mult=2,
        indexer_types=["full", "full", "shared"],
    ),
    "glm_moe_dsa": lambda: T.GlmMoeDsaConfig(
        **DEEPSEEK, **FIRST_DENSE, **ONE_GROUP, **INDEXED, indexer_types=["full", "shared", "shared"]
    ),
    "zaya": lambda: T.ZayaConfig(
        **HEADS, num_experts=8, num_experts_per_tok=1, moe_intermediate_size=24, router_hidden_size=16
    ),
    "exaone_moe": lambda: T.ExaoneMoeConfig(
        **BASE, **FIRST_DENSE, **EXPERTS, **SLIDING, num_shared_experts=1, first_k_dense_replace=1
    ),
    "afmoe": lambda: T.AfmoeConfig(**HEADS, **DENSE_AND_MOE, **EXPERTS, **SLIDING, num_shared_experts=1),
    "solar_open": lambda: T.SolarOpenConfig(**HEADS, **ROUTED, moe_intermediate_size=24),
    "cohere2_moe": lambda: T.Cohere2MoeConfig(
        **HEADS,
        **EXPERTS,
        **SLIDING,
        intermediate_size=24,
        num_shared_experts=1,
        mlp_layer_types=["dense", "sparse", "sparse"],
        prefix_dense_intermediate_size=48,
    ),
    "mellum": lambda: T.MellumConfig(**HEADS, **FIRST_DENSE, **EXPERTS, **SLIDING),
    "laguna": lambda: T.LagunaConfig(**HEADS, **FIRST_DENSE, **EXPERTS, **SLIDING, **SHARED),
    "mimo_v2_flash": lambda: T.MiMoV2FlashConfig(
        **HEADS, **FIRST_DENSE, **ROUTED, **ONE_GROUP, **SLIDING, v_head_dim=8
    ),
    "kimi_linear": lambda: T.KimiLinearConfig(
        **MHA, **MLA, **FIRST_DENSE, **LOCAL, **LINEAR, n_shared_experts=1, linear_head_dim=8, linear_num_heads=4
    ),
    "bailing_hybrid": lambda: T.BailingHybridConfig(
        **MHA,
        **MLA,
        **FIRST_DENSE,
        **LOCAL,
        **TWO_GROUPS,
        **LINEAR,
        head_dim=8,
        n_shared_experts=1,
        num_mtp_layers=0,
    ),
    "inkling_text": lambda: T.InklingTextConfig(
        **HEADS,
        **FIRST_DENSE,
        **ROUTED,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        sliding_window_size=8,
        d_rel=4,
        rel_extent=16,
        n_shared_experts=1,
        route_scale=1.0,
        logits_mup_width_multiplier=1.0,
        layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"],
    ),
    "beam": lambda: T.BeamConfig(**HEADS, **FIRST_DENSE, **EXPERTS, **TWO_GROUPS, **SLIDING),
    "flint": lambda: T.FlintConfig(**HEADS, **DENSE_AND_MOE, **EXPERTS, **SHARED, **SLIDING),
    "kolibri1": lambda: T.Kolibri1Config(**HEADS, **EXPERTS, **SHARED, **SLIDING, moe_intermediate_size=24),
    "axk1": lambda: T.AXK1Config(**DEEPSEEK, **FIRST_DENSE, **TWO_GROUPS),
    "axk2": lambda: T.AXK2Config(**DEEPSEEK, **FIRST_DENSE, **INDEXED, gated_norm_rank=4),
    "mistral4": lambda: T.Mistral4Config(**DEEPSEEK, **DENSE_AND_MOE, **ONE_GROUP, first_k_dense_replace=1),
    # From here on: models that see or hear, too.
    "gemma4": lambda: T.Gemma4Config(
        text_config=text("gemma4_text"),
        vision_config=dict(**TALL_EYES, num_key_value_heads=2, head_dim=8, position_embedding_size=16),
        audio_config=None,
    ),
    "llama4": lambda: T.Llama4Config(
        text_config=text("llama4_text"),
        vision_config=dict(
            **{**TALL_EYES, "intermediate_size": 64},
            image_size=8,
            vision_output_dim=16,
            projector_input_dim=16,
            projector_output_dim=16,
        ),
    ),
    "qwen3_vl_moe": lambda: T.Qwen3VLMoeConfig(
        text_config=dict(**HEADS, **DENSE_AND_MOE, **LOCAL, **MROPE),
        vision_config=dict(**DEEP_EYES, num_position_embeddings=16, deepstack_visual_indexes=[0]),
    ),
    "qwen3_5_moe": lambda: T.Qwen3_5MoeConfig(
        text_config=text("qwen3_5_moe_text"),
        vision_config=dict(**DEEP_EYES, num_position_embeddings=16),
    ),
    "glm4v_moe": lambda: T.Glm4vMoeConfig(
        text_config=dict(
            **HEADS,
            **DENSE_AND_MOE,
            **ROUTED,
            **ONE_GROUP,
            n_shared_experts=1,
            first_k_dense_replace=1,
            rope_parameters={**MROPE["rope_parameters"], "partial_rotary_factor": 1.0},
        ),
        vision_config=dict(**DEEP_EYES, image_size=16),
    ),
    "glm5_next": lambda: T.Glm5NextConfig(
        text_config=dict(
            **{**DEEPSEEK, "qk_rope_head_dim": 0},
            **FIRST_DENSE,
            **ONE_GROUP,
            **INDEXED,
            layer_types=["linear_attention", "indexed_attention", "linear_attention"],
            linear_head_dim=8,
            linear_num_heads=4,
            swiglu_limit=1.0,
            hc_mult=2,
            hc_sinkhorn_iters=4,
            index_kpool=2,
        ),
        vision_config=dict(**DEEP_EYES, projection_intermediate_size=16, image_size=16),
    ),
    "mistral_large4": lambda: T.MistralLarge4Config(
        text_config=dict(**DEEPSEEK, **FIRST_DENSE, **ONE_GROUP, **INDEXED),
        vision_config=dict(model_type="pixtral", **TALL_EYES, head_dim=8, image_size=16),
    ),
    "step3p7": lambda: T.Step3p7Config(
        text_config=dict(
            **HEADS,
            **FIRST_DENSE,
            **ROUTED,
            **SLIDING,
            share_expert_dim=24,
            swiglu_limits=[0.0, 0.5, 0.0],
            swiglu_limits_shared=[0.0, 0.0, 1.0],
        ),
        vision_config=dict(**without(TALL_EYES, "intermediate_size"), image_size=8, max_position_embeddings=4),
    ),
    "muse_spark": lambda: T.MuseSparkConfig(
        text_config=dict(**HEADS, **FIRST_DENSE, **LOCAL, **SLIDING, moe_hidden_size=16),
        vision_config=dict(
            **without(TALL_EYES, "patch_size"), pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16
        ),
        audio_config=dict(
            patch_sizes=[4, 2], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2, out_hidden_size=32
        ),
        out_hidden_size=32,
        projector_hidden_size=16,
    ),
    "inkling_mm_model": lambda: T.InklingConfig(
        text_config=text("inkling_text"),
        vision_config=dict(**TALL_EYES, text_hidden_size=32),
        audio_config=dict(text_hidden_size=32),
    ),
}

# One architecture of each form in which experts are stored: `make test` takes these, `make test-all` all of them.
FORMS = {
    "qwen3_moe": "a matrix per expert and role",
    "step3p7": "a tensor per role",
    "jetmoe": "a tensor of gate and up, one behind the other",
    "llama4_text": "the same, transposed",
    "gpt_oss": "a transposed tensor of gate and up, neuron by neuron, and biases",
    "dbrx": "flat: all experts of a role in two dimensions",
    "nemotron_h": "no gate",
    "longcat_flash": "beside experts that give their input back",
}

# What cannot be merged.
REFUSED = {
    "doge": lambda: T.DogeConfig(**BASE, intermediate_size=48, is_moe=True, num_experts=16, num_experts_per_tok=2),
    "inkling2_text": lambda: T.Inkling2TextConfig(
        **{**HEADS, "num_hidden_layers": 5},
        **ROUTED,
        moe_intermediate_size=24,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        sliding_window_size=8,
        d_rel=4,
        rel_extent=16,
        unpadded_vocab_size=97,
        n_layers_per_attn_res_block=2,
    ),
}


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save the random model of one architecture; what starts as 0 or 1, as norms and biases do, is random, too."""
    torch.manual_seed(0)
    model = model_class(CONFIGS[name]())._from_config(CONFIGS[name](), dtype=dtype)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not key.endswith(
            "balancing_biases"
        ):  # zaya's: loading fixes the last of them
            tensor.add_(0.05 * torch.randn_like(tensor))
        elif key.endswith("tid2eid"):  # deepseek_v4: the experts of each token, looked up
            tensor.copy_(torch.stack([torch.randperm(8)[: tensor.shape[1]] for _ in tensor]))
    model.save_pretrained(folder, max_shard_size="60KB")  # several files
    if name == "deepseek_v4":  # transformers 5.23 saves the final norm under a name that it then reads as another's
        rename_tensor(folder, "model.norm.weight", "norm.weight")  # as the published checkpoints have it
    return folder


def rename_tensor(folder: Path, old: str, new: str) -> None:
    """Give a stored tensor another name."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = index["weight_map"].pop(old)
    index["weight_map"][new] = file
    tensors = {new if key == old else key: tensor for key, tensor in load_file(folder / file).items()}
    save_file(tensors, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
