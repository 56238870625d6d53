"""Whether transformers has code for an architecture. Imports transformers."""

from pathlib import Path

from mergemoe.checkpoints import model_folder
from mergemoe.errors import UserError

_OWN = {"deepseek"}  # read by code of this project (models/deepseek.py), where transformers has none


def check_architecture(folder: str | Path) -> None:
    """Check that code for the architecture is at hand. Imports transformers, so no parse of the Snakefile asks.

    Raises:
        UserError: where transformers does not know the model_type, whether or not the checkpoint brings code.
    """
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = model_folder.read_config(folder)
    if (model_type := config["model_type"]) in {*CONFIG_MAPPING_NAMES, *_OWN}:
        return
    if config.get("auto_map"):
        raise UserError(
            f"{folder}: transformers {__version__} does not know the model_type {model_type!r}; the checkpoint brings "
            f"code of its own ({config['auto_map']}). Such code is never run here, "
            "consent or not: it could do anything, and how unknown code uses its experts cannot be checked. Take a "
            "checkpoint in transformers' own format, if there is one (docs/models.md)"
        )
    raise UserError(
        f"{folder}: transformers {__version__} does not know the model_type {model_type!r}: it is newer than this "
        "version, or misspelt in config.json"
    )
