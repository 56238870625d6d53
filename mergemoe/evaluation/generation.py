"""Score greedy continuations of held-out prompts: loops, distinct n-grams, length and perplexity.

A compressed model can be close to the full model token by token and still run into a loop when it reads its own output,
so generation is measured beside fidelity. A continuation is the tokens after the prompt, including the end token if the
model produced it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from mergemoe.calibration.capture import batches_of
from mergemoe.errors import UserError
from mergemoe.evaluation import fidelity
from mergemoe.progress import track

UNIT = 12  # tokens of the longest unit that counts as a loop
TURNS = 3  # least number of times that the unit must occur
SPAN = 24  # least number of tokens in the repetition, so that "no, no, no" is not a loop


def take_prompts(ids: Tensor, mask: Tensor, count: int, tokens: int) -> Tensor:
    """Return the first `tokens` tokens [count, tokens] of the first `count` sequences that are long enough.

    Args:
        ids: [S, L] tokens, padded on the right.
        mask: [S, L], 1 on tokens.
        count: the number of prompts.
        tokens: the number of tokens of each prompt.

    Raises:
        UserError: too few sequences are long enough.
    """
    enough = mask.sum(1) >= tokens
    if enough.sum() < count:
        raise UserError(
            f"evaluate.generation: {count} prompts of {tokens} tokens are needed, but only {int(enough.sum())} of the "
            f"{len(ids)} held-out sequences are long enough. Raise `samples` or `length` of evaluate.heldout, or lower "
            "`prompts` or `prompt_tokens`"
        )
    return ids[enough][:count, :tokens]


def greedy_continuations(
    model: Any, starts: Tensor, new_tokens: int, end: int | None, batch_tokens: int, device: torch.device
) -> list[list[int]]:
    """Return the greedy continuation of every prompt.

    Args:
        model: a decoder.
        starts: [P, T] prompts.
        new_tokens: the number of tokens of the longest continuation.
        end: the end token; None if the tokenizer has none.
        batch_tokens: the number of tokens in a batch, prompts and continuations together.
        device: the model's device.
    """
    settings = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end or 0
    )
    model.generation_config = settings  # otherwise generate fills open settings from the checkpoint's file
    continued: list[list[int]] = []
    size = max(1, batch_tokens // (starts.shape[1] + new_tokens))
    for batch in track(starts.long().split(size), "generation: batches"):
        read = batch.to(device)
        made = model.generate(read, attention_mask=torch.ones_like(read), generation_config=settings)
        continued += [_to_end(row, end) for row in made[:, starts.shape[1] :].tolist()]
    return continued


def _to_end(row: list[int], end: int | None) -> list[int]:
    """Cut off the padding after the end token: a continuation may end before the others of its batch."""
    return row[: row.index(end) + 1] if end in row else row


def continuation_scores(continued: Sequence[Sequence[int]], end: int | None) -> dict[str, float]:
    """Return the means of loops, distinct1 to distinct3 and length over continuations, each with its standard error.

    The end token is not part of the text, so no score counts it.
    """
    texts = [row[:-1] if row and row[-1] == end else row for row in continued]
    each = {
        "loops": [float(ends_in_loop(text)) for text in texts],
        **{f"distinct{n}": [distinct_share(text, n) for text in texts] for n in (1, 2, 3)},
        "length": [float(len(text)) for text in texts],
    }
    found: dict[str, float] = {}
    for name, values in each.items():
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        found |= {name: mean, f"{name}_stderr": math.sqrt(variance / len(values))}
    return found


def ends_in_loop(text: Sequence[int]) -> bool:
    """Return whether a text ends in a loop: a unit of at most `UNIT` tokens is repeated up to the end.

    Let u be the number of tokens of the unit and n = max(`SPAN`, `TURNS` u). The text ends in a loop if each of its
    last n - u tokens equals the token u places before it: its last n tokens repeat the unit at least `TURNS` times. The
    text may break off inside the unit.
    """
    for unit in range(1, UNIT + 1):
        tail = text[-max(SPAN, TURNS * unit) :]
        if len(tail) == max(SPAN, TURNS * unit) and tail[unit:] == tail[:-unit]:
            return True
    return False


def distinct_share(text: Sequence[int], n: int) -> float:
    """Return the share of a text's n-grams that are distinct; 1 if there is no n-gram, because nothing repeats."""
    grams = list(zip(*(text[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def continuation_perplexity(
    full: Any, starts: Tensor, continued: Sequence[Sequence[int]], batch_tokens: int, device: torch.device
) -> dict[str, float]:
    """Return exp of the mean NLL per token of the continuations under the full model, and its standard error.

    The end token counts, because the model chose it like any other token. The standard error is over continuations.
    """
    width = max(map(len, continued))
    behind = torch.tensor([[*row, *[0] * (width - len(row))] for row in continued], dtype=torch.int32)
    scored = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in continued], dtype=torch.uint8)
    ids = torch.cat([starts.int(), behind], 1)
    read = torch.cat([torch.ones_like(starts, dtype=torch.uint8), scored], 1)
    states = fidelity.final_hidden_states(full, batches_of(ids, read, batch_tokens, device))
    targets = torch.cat([torch.zeros_like(starts, dtype=torch.uint8), scored], 1)
    return fidelity.language_scores(fidelity.logits_function(full), states, ids, targets, device)
