"""A random checkpoint in the form of DeepSeekMoE's."""

import json

import torch
from safetensors.torch import save_file

# As deepseek-moe-16b-base says it, with smaller widths and fewer layers.
CONFIG = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "deepseek",
    "moe_intermediate_size": 12,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 97,
}


def random_checkpoint(folder, config=CONFIG, dtype=torch.float32):
    """Write a random DeepSeekMoE with the published names of its tensors."""
    g = torch.Generator().manual_seed(0)
    h, heads = config["hidden_size"], config["num_attention_heads"]
    kv = h // heads * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], h), "lm_head.weight": (config["vocab_size"], h)}

    def mlp(name, width):
        return {f"{name}.{p}_proj.weight": (width, h) for p in ("gate", "up")} | {
            f"{name}.down_proj.weight": (h, width)
        }

    norms = ["model.norm.weight"]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        norms += [f"{at}.input_layernorm.weight", f"{at}.post_attention_layernorm.weight"]
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (kv if p in "kv" else h, h) for p in "qkvo"}
        if i < config["first_k_dense_replace"]:
            shapes |= mlp(f"{at}.mlp", config["intermediate_size"])
            continue
        shapes[f"{at}.mlp.gate.weight"] = (config["n_routed_experts"], h)
        for expert in range(config["n_routed_experts"]):
            shapes |= mlp(f"{at}.mlp.experts.{expert}", config["moe_intermediate_size"])
        shapes |= mlp(f"{at}.mlp.shared_experts", config["n_shared_experts"] * config["moe_intermediate_size"])
    tensors = {name: 0.2 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    tensors |= {name: 1 + 0.1 * torch.randn(h, generator=g) for name in norms}
    folder.mkdir(parents=True)
    save_file({k: t.to(dtype) for k, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
