"""Check that transformers has code for an architecture."""

from pathlib import Path

from mergemoe.checkpoints import model_folder
from mergemoe.errors import UserError

_OWN = {"deepseek"}  # transformers has no code for it; models/deepseek.py converts it


def check_architecture(folder: str | Path) -> None:
    """Check that transformers knows the model_type. This imports transformers, so it is not called at every parse.

    Raises:
        UserError: transformers does not know the model_type, whether or not the checkpoint has code of its own.
    """
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = model_folder.read_config(folder)
    if (model_type := config["model_type"]) in {*CONFIG_MAPPING_NAMES, *_OWN}:
        return
    if config.get("auto_map"):
        raise UserError(
            f"{folder}: transformers {__version__} does not know the model_type {model_type!r}. The checkpoint comes "
            f"with code of its own ({config['auto_map']}), which is never run here: it could do anything, and its use "
            "of the experts cannot be checked. Use a checkpoint in transformers' own format if there is one "
            "(docs/models.md)"
        )
    raise UserError(
        f"{folder}: transformers {__version__} does not know the model_type {model_type!r}. The architecture is newer "
        "than this version, or its name in config.json is wrong. Correct config.json, or use another checkpoint"
    )
