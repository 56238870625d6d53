"""Convert DeepSeekMoE (model_type `deepseek`, arXiv 2401.06066) to the class qwen2_moe, which computes the same.

transformers has no class for DeepSeekMoE, and code that comes with a checkpoint is never run. The differences:

- DeepSeekMoE adds the output of the shared experts; qwen2_moe first multiplies it by sigmoid(w x). With w = 0 this
  factor is exactly 1/2, so the shared down-projection is stored doubled: a power of two changes no bit of the product.
- The first layers are dense (`first_k_dense_replace`); in qwen2_moe they are listed in `mlp_only_layers`.
- No projection of the attention has a bias: `qkv_bias` is false.
- If one expert works on a token, its weight stays below 1 even when `norm_topk_prob` is true.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.carried_files import copy_others
from mergemoe.checkpoints.expert_weights import StoredTensors
from mergemoe.checkpoints.shards import write_shards
from mergemoe.errors import UserError
from mergemoe.progress import track

# Values that qwen2_moe's arithmetic assumes. They are DeepSeekMoE's defaults, too, so a key may be missing.
_FIXED = {
    "scoring_func": "softmax",
    "moe_layer_freq": 1,
    "attention_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "hidden_act": "silu",
}
# Sizes with the same name in both. qwen2_moe has other defaults, so config.json must state them.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts_per_tok",
    "max_position_embeddings",
    "rms_norm_eps",
)
_SAME = (
    "hidden_act",
    "initializer_range",
    "use_cache",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attention_dropout",
)
_RENAMED = ("n_routed_experts", "n_shared_experts", "torch_dtype")
_DEFAULTS = {"first_k_dense_replace": 0, "norm_topk_prob": False, "rope_theta": 10000.0}
# Keys about the file, the training, and code that is not run.
_UNUSED = ("architectures", "model_type", "transformers_version", "_name_or_path", "aux_loss_alpha", "seq_aux")
_UNUSED += ("auto_map",)


def qwen2_moe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the qwen2_moe configuration that computes the same as a DeepSeekMoE configuration.

    Raises:
        UserError: a key is missing or unknown, or has a value that qwen2_moe does not support.
    """
    config = {"torch_dtype": config["dtype"], **config} if "dtype" in config else dict(config)
    known = {*_FIXED, *_SIZES, *_SAME, *_RENAMED, *_DEFAULTS, *_UNUSED, "dtype"}
    if unknown := sorted(config.keys() - known):
        raise UserError(
            f"config.json of this DeepSeekMoE has an unknown key, {unknown[0]}: {config[unknown[0]]!r}. The published "
            "model does not have it, and it may change what the model computes. This checkpoint cannot be converted"
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(
                f"config.json of this DeepSeekMoE has {key}: {config[key]!r}. Only {value!r} is supported, because "
                "qwen2_moe computes nothing else. This checkpoint cannot be converted"
            )
    for key in (*_SIZES, *_RENAMED):
        if not config.get(key):
            raise UserError(
                f"config.json of this DeepSeekMoE has {key}: {config.get(key)!r}. A size is needed. Add the value that "
                "the model was trained with"
            )
    config = _DEFAULTS | config
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "dtype": config["torch_dtype"],
        **{key: config[key] for key in (*_SIZES, *_SAME) if key in config},
        "num_experts": config["n_routed_experts"],
        "shared_expert_intermediate_size": config["n_shared_experts"] * config["moe_intermediate_size"],
        "norm_topk_prob": config["norm_topk_prob"] and config["num_experts_per_tok"] > 1,
        "mlp_only_layers": list(range(config["first_k_dense_replace"])),
        "decoder_sparse_step": 1,
        "qkv_bias": False,
        "use_sliding_window": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rope_theta"])},
    }


def qwen2_moe_key(key: str) -> str:
    """Return the key of a stored tensor in qwen2_moe."""
    return key.replace(".mlp.shared_experts.", ".mlp.shared_expert.")


def convert_deepseek(folder: str | Path, out: Path) -> None:
    """Write a DeepSeekMoE checkpoint as a qwen2_moe checkpoint; only the tensors of the shared experts differ.

    Raises:
        UserError: qwen2_moe does not support its configuration.
    """
    folder = Path(folder)
    config = qwen2_moe_config(model_folder.read_config(folder))
    out.mkdir(parents=True)
    with StoredTensors(folder) as stored:
        write_shards(track(_tensors(stored), "convert: tensors", len(stored.headers)), out, 4 << 30)
    (out / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")
    copy_others(folder, out)


def _tensors(stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    for key in stored.headers:
        if key.endswith("rotary_emb.inv_freq"):  # a table in older files; the class computes it
            continue
        tensor, name = stored[key], qwen2_moe_key(key)
        if name.endswith(".shared_expert.down_proj.weight"):
            gate = name.replace(".shared_expert.down_proj.", ".shared_expert_gate.")
            yield gate, torch.zeros(1, len(tensor), dtype=tensor.dtype)
            tensor = tensor * 2
        yield name, tensor
