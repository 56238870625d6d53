"""The keys of config.json that are read here: their names in all architectures, and the types of their values.

Snakefile, inspect and layout read config.json before transformers does, so a value of a wrong type ends here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError

# The keys that architectures use for the same number.
CONFIG_KEYS = {
    "experts": ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts"),
    "top_k": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "top_k_experts",
        "num_selected_experts",
        "top_k",
    ),
    "hidden_size": ("moe_hidden_size", "moe_latent_size", "d_model", "hidden_size"),  # of the experts' inputs
    "layers": ("num_layers", "n_layers", "num_hidden_layers"),  # in longcat_flash the last is twice the block count
    "predicting_layers": ("num_nextn_predict_layers",),  # stored after the other layers; not part of the model
    "identity_experts": ("zero_expert_num",),
    "width": ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "intermediate_size", "d_ff"),
    "flat_width": ("ffn_hidden_size",),
    "vocabulary": ("vocab_size",),
}

# Numbers of layers that predict further tokens, under names of their own: no class here reads such layers.
UNREAD_LAYERS = (*CONFIG_KEYS["predicting_layers"], "mtp_num_hidden_layers", "num_mtp_modules")

LARGEST = 1 << 40
DEEPEST = 10_000
NESTED = ("text_config", "ffn_config", "vision_config", "audio_config", "rope_parameters")
_COUNTS = {name for names in CONFIG_KEYS.values() for name in names}
_COUNTS |= {"n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"}
_OBJECTS = {*NESTED, "auto_map", "mergemoe"}
_DEPTHS = ("layers", "depth", "blocks")  # ends of keys; transformers builds so many modules
_KERNELS = {"attn_implementation": ("eager", "sdpa"), "experts_implementation": ("eager", "batched_mm", "grouped_mm")}


def check_values(path: Path, config: Mapping[str, Any]) -> None:
    """Check the values of a config.json that are read here, and those of its nested configurations.

    Raises:
        UserError: a value has another type, or a number is absurd.
    """
    for key in NESTED:
        if isinstance(config.get(key), dict):
            check_values(path, config[key])
    _check_values(path, config)


def _check_values(path: Path, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _OBJECTS and not isinstance(value, dict | None):
            raise _wrong(path, key, value, "an object")
        if key in _COUNTS and not _are_counts(value):
            raise _wrong(path, key, value, "a whole number, at least 0 and at most 2^40, or one for each layer")
        if key.endswith(_DEPTHS) and type(value) is int and not 0 <= value <= DEEPEST:
            raise _wrong(path, key, value, f"at least 0 and at most {DEEPEST:,}")
        if key == "model_type" and not isinstance(value, str | None):
            raise _wrong(path, key, value, "a name")
        if key == "architectures" and not (value is None or _are_texts(value)):
            raise _wrong(path, key, value, "a list of names")
        if key == "rope_theta" and not (value is None or (isinstance(value, int | float) and value > 0)):
            raise _wrong(path, key, value, "a number above 0")
        of_torch = _KERNELS.get(key.removeprefix("_"))
        if of_torch and value not in (None, *of_torch):
            raise UserError(
                f"{path}: {key} is {_short(value)}. Only {', '.join(of_torch)} run without another package, and the "
                "scores must not depend on what is installed. Delete the key: transformers then takes its default"
            )


def _are_counts(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return all(one is None or (type(one) is int and 0 <= one <= LARGEST) for one in each)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _wrong(path: Path, key: str, value: Any, wanted: str) -> UserError:
    return UserError(
        f"{path}: {key} is {_short(value)}, but must be {wanted}. The file is damaged or was edited. Use the "
        "config.json that belongs to the weights"
    )


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) < 80 else f"{text[:80]}..."


def needed_size(config: Mapping[str, Any], what: str) -> int:
    """Return the number that a config.json gives for one key of `CONFIG_KEYS`.

    Raises:
        UserError: it gives none, or 0.
    """
    if found := [value for value in config_values(config, what) if value]:
        return found[0]
    raise UserError(
        f"config.json states none of {', '.join(CONFIG_KEYS[what])}. The file is damaged, or this version does not "
        "know the architecture's keys. Use the config.json that belongs to the weights"
    )


def config_values(config: Mapping[str, Any], what: str) -> list[int]:
    """Return all numbers that a config.json gives for one key of `CONFIG_KEYS`, under any of its names."""
    language = {**config, **(config.get("text_config") or {}), **(config.get("ffn_config") or {})}
    values = [language.get(name) for name in CONFIG_KEYS[what]]
    values = [max(filter(None, value), default=None) if isinstance(value, list) else value for value in values]
    return [value for value in values if isinstance(value, int)]


def config_top_k(config: Mapping[str, Any]) -> int | None:
    """Return the number of experts per token, or None if config.json does not state it."""
    return 1 if config.get("model_type") == "switch_transformers" else next(iter(config_values(config, "top_k")), None)
