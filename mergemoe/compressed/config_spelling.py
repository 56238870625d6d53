"""Write the configuration of a compressed model with the keys that the original's config.json has.

transformers 5 writes some keys under other names than version 4 did (`num_local_experts`, `rope_parameters`, `dtype`),
and version 4, vLLM and llama.cpp look for the old ones (`num_experts`, `rope_theta`, `torch_dtype`).
"""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

OF_THE_FILE = ("_name_or_path", "transformers_version", "_commit_hash")  # they say nothing about the model
RENAMED = {"torch_dtype": "dtype"}  # as a configuration's attribute_map: {old name: new}


def in_old_keys(config: PretrainedConfig, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a configuration in the keys of the config.json that it came from.

    Args:
        config: of the model as it is now.
        raw: the original's config.json.

    Returns:
        `raw` with what changed since; None if transformers would read that otherwise than `config`.
    """
    if raw.get("model_type") != config.model_type:
        return None
    found = _edited(raw, type(config).from_dict(dict(raw)), config)
    return found if _facts(type(config).from_dict(found)) == _facts(config) else None


def _edited(raw: Mapping[str, Any], before: PretrainedConfig, after: PretrainedConfig) -> dict[str, Any]:
    found, old = dict(raw), _facts(before)
    for key, value in _facts(after).items():
        if key in old and old[key] == value:
            continue
        if isinstance(raw.get(key), dict) and isinstance(part := getattr(after, key, None), PretrainedConfig):
            found[key] = _edited(raw[key], getattr(before, key), part)
            continue
        aliases = [alias for alias, name in (after.attribute_map | RENAMED).items() if name == key]
        for name in [name for name in (key, *aliases) if name in raw] or [key]:
            found[name] = value
    return found


def _facts(config: PretrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in OF_THE_FILE}
