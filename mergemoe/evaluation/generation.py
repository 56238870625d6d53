"""How a model goes on by itself: greedy continuations of held-out prompts, and what is wrong with them.

A compressed model can be near the full one token by token and still fall into a loop once it reads its own words, so
this is measured beside fidelity. A continuation is the tokens behind the prompt, the end token included where it came.
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
TURNS = 3  # times that it must follow itself
SPAN = 24  # tokens that the repetition must cover, so that "no, no, no" is none


def take_prompts(ids: Tensor, mask: Tensor, count: int, tokens: int) -> Tensor:
    """Return the first `tokens` tokens [count, tokens] of the first `count` sequences that have as many.

    Args:
        ids: [S, L] tokens, padded on the right.
        mask: [S, L] 1 on tokens.
        count: prompts.
        tokens: of each prompt.

    Raises:
        UserError: where too few sequences are long enough.
    """
    enough = mask.sum(1) >= tokens
    if enough.sum() < count:
        raise UserError(
            f"evaluate.generation asks for {count} prompts of {tokens} tokens, and {int(enough.sum())} of the "
            f"{len(ids)} held-out sequences are as long: raise `samples` or `length` of evaluate.heldout, or lower "
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
        new_tokens: of the longest continuation.
        end: the token that ends one; None if the tokenizer has none.
        batch_tokens: of one batch, prompts and continuations.
        device: the model's.
    """
    settings = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end or 0
    )
    model.generation_config = settings  # generate fills what we leave open from here, else from the checkpoint's file
    continued: list[list[int]] = []
    size = max(1, batch_tokens // (starts.shape[1] + new_tokens))
    for batch in track(starts.long().split(size), "generation: batches"):
        read = batch.to(device)
        made = model.generate(read, attention_mask=torch.ones_like(read), generation_config=settings)
        continued += [_to_end(row, end) for row in made[:, starts.shape[1] :].tolist()]
    return continued


def _to_end(row: list[int], end: int | None) -> list[int]:
    """Cut off what pads a continuation that ended before the others of its batch."""
    return row[: row.index(end) + 1] if end in row else row


def continuation_scores(continued: Sequence[Sequence[int]], end: int | None) -> dict[str, float]:
    """Return loops, distinct1 to distinct3 and length, means over continuations, each with its standard error.

    The end token is no word of the text, so none of them counts it.
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
    """Return whether a text ends in a loop: a unit of at most `UNIT` tokens is repeated to its end.

    With a unit of u tokens, each of the last n - u tokens equals the one u before it, n = max(`SPAN`, `TURNS` u): the
    last n tokens are the unit over and over, `TURNS` times at least. Where in the unit the text breaks off is all one.
    """
    for unit in range(1, UNIT + 1):
        tail = text[-max(SPAN, TURNS * unit) :]
        if len(tail) == max(SPAN, TURNS * unit) and tail[unit:] == tail[:-unit]:
            return True
    return False


def distinct_share(text: Sequence[int], n: int) -> float:
    """Return the share of a text's n-grams that are distinct; 1 where there is none, since nothing repeats."""
    grams = list(zip(*(text[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def continuation_perplexity(
    full: Any, starts: Tensor, continued: Sequence[Sequence[int]], batch_tokens: int, device: torch.device
) -> dict[str, float]:
    """Return exp of the mean NLL per token of the continuations under the full model, and its standard error.

    The end token counts, for it was chosen like any other. As in fidelity, continuations are the units of the error.
    """
    width = max(map(len, continued))
    behind = torch.tensor([[*row, *[0] * (width - len(row))] for row in continued], dtype=torch.int32)
    scored = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in continued], dtype=torch.uint8)
    ids = torch.cat([starts.int(), behind], 1)
    read = torch.cat([torch.ones_like(starts, dtype=torch.uint8), scored], 1)
    states = fidelity.final_hidden_states(full, batches_of(ids, read, batch_tokens, device))
    targets = torch.cat([torch.zeros_like(starts, dtype=torch.uint8), scored], 1)
    return fidelity.language_scores(fidelity.logits_function(full), states, ids, targets, device)
