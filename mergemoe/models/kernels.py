"""Check that a class of transformers can run with the kernels that a config.json asks for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints.config_keys import NESTED
from mergemoe.errors import UserError

# {key: (value, its test)}; other values run everywhere, or config_keys.check_values has refused them.
_NOT_EVERYWHERE = {
    "attn_implementation": ("sdpa", lambda cls: cls._supports_sdpa),
    "experts_implementation": ("grouped_mm", lambda cls: cls._can_set_experts_implementation()),
}


def check_kernels(cls: Any, settings: Mapping[str, Any], folder: str | Path) -> None:
    """Check the kernels that a config.json asks for.

    Args:
        cls: the model's class, of transformers or a subclass.
        settings: the content of config.json.
        folder: the checkpoint folder, named in messages.

    Raises:
        UserError: the class does not have one.
    """
    for key, value in _asked(settings):
        kernel, has = _NOT_EVERYWHERE[key.removeprefix("_")]
        if value == kernel and not has(cls):
            raise UserError(
                f"{folder}/config.json: {key} is {value!r}, which {cls.__name__} does not have in this version of "
                "transformers. Delete the key: transformers then takes its default"
            )


def _asked(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((key, value) for key, value in settings.items() if key.removeprefix("_") in _NOT_EVERYWHERE)
    for part in NESTED:
        if isinstance(settings.get(part), dict):
            yield from _asked(settings[part])
