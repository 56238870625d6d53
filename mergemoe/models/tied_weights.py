"""Check weights that config.json ties but that are stored twice, with different numbers.

transformers then loads the two apart with a warning, and ties them again in other calls, such as `tie_weights`.
"""

from pathlib import Path
from typing import Any

import torch

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.expert_weights import StoredTensors
from mergemoe.errors import UserError
from mergemoe.models.layered_model import empty_model
from mergemoe.models.stored_keys import stored_keys

_WAY_OUT = (
    "Set `tie_word_embeddings: false` in config.json if both are the model's; if they should be one, the file is "
    "damaged or was trained apart: ask its source which of them counts"
)


def check_stored_ties(folder: str | Path) -> None:
    """Check the tied tensors of a checkpoint that stores both.

    Raises:
        UserError: they differ.
    """
    model = empty_model(folder)
    stored = {source.parameter: key for key, source in stored_keys(model, model_folder.read_headers(folder)).items()}
    with StoredTensors(Path(folder)) as tensors:
        for tied, source in model.all_tied_weights_keys.items():
            one, other = stored.get(tied), stored.get(source)
            if one and other and not torch.equal(tensors[one], tensors[other]):
                raise UserError(f"{folder}: config.json ties {one} to {other}, but their numbers differ. {_WAY_OUT}")


def check_held_ties(model: Any, name: str | Path) -> None:
    """Check that the head of a model in memory is its embedding if its configuration ties them; `name` is shown.

    Raises:
        UserError: it has other numbers.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or head.weight is embedding.weight:
        return
    if not head.weight.is_meta and not torch.equal(head.weight, embedding.weight):
        raise UserError(
            f"{name}: its configuration ties the head to the embedding, but their numbers differ. {_WAY_OUT}"
        )
