"""Check the tokens that are given to `mergemoe.compress`, and choose the sequences that are held out."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergemoe.calibration.token_sequences import heldout_rows
from mergemoe.errors import UserError, shown
from mergemoe.reconstruction.requirements import too_few


def ids_and_mask(tokens: Tensor | Mapping[str, Tensor], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, [S, L] each.

    Args:
        tokens: as compress has them.
        vocabulary: rows of the model's embedding.

    Raises:
        UserError: if they are not what a tokenizer of the model returns.
    """
    given = tokens if isinstance(tokens, Mapping) else {"input_ids": tokens}
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not _whole(ids) or not ids.numel():
        raise UserError(
            "`tokens` must be token ids [sequences, length], or the result of a tokenizer with "
            f'return_tensors="pt", padding=True; got {getattr(ids, "shape", type(ids).__name__)}'
        )
    mask = torch.ones_like(ids) if mask is None else mask
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or not mask.any():
        raise UserError(f"attention_mask {_shape(mask)} does not fit ids {_shape(ids)}, or masks every token")
    if not ((mask == 0) | (mask == 1)).all():
        raise UserError("attention_mask must be 1 on tokens and 0 on padding")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"`tokens` has ids from {low} to {high}, and the model's embedding has rows 0 to {vocabulary - 1}. Use the "
            "model's own tokenizer; padding takes any id of the vocabulary, not -100"
        )
    return ids, mask


def _whole(ids: Tensor) -> bool:
    return not ids.is_floating_point() and not ids.is_complex() and ids.dtype != torch.bool


def _shape(tensor: Any) -> list[int] | str:
    return list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__


def heldout_sequences(rows: int, holdout: Any, seed: Any) -> Tensor:
    """Return which of the sequences are held out [S].

    Raises:
        UserError: if the share or the seed makes no sense, or no sequence is left.
    """
    if not isinstance(holdout, int | float | np.floating) or not 0 <= holdout < 1:
        raise UserError(f"`holdout` must be a share of the sequences, at least 0 and below 1; got {shown(holdout)}")
    if not isinstance(seed, numbers.Integral):
        raise UserError(f"`seed` must be a whole number; got {shown(seed)}")
    return torch.tensor(heldout_rows(rows, float(holdout), int(seed)))


def check_sequences(method: str, ridge: float | str, descends: bool, heldout: Tensor, real: Tensor) -> None:
    """Check that there are sequences [S] with tokens to fit, and held-out ones if something is chosen by them."""
    if not (real & ~heldout).any():
        raise UserError("every sequence that has tokens is held out, so none is left to fit. Lower `holdout`")
    heldout = heldout & real
    if ridge == "auto" and not heldout.any():
        raise UserError(
            f"method {method} chooses its ridge by held-out sequences, and there are none. Give `holdout` a share "
            "above 0, or `ridge` a number such as 0.01"
        )
    if descends and (why := too_few(int(heldout.sum()))):
        raise UserError(why)
