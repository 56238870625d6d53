"""What a checkpoint costs, counted from its headers: no weight is read, no model is built, nothing is timed.

A token is multiplied with every matrix once, but with K of the E experts of a layer only. So, with n the
numbers in a matrix,

    flops_per_token = 2 (sum of n over matrices outside the experts + sum over layers of K/E sum of n over experts)

The embedding is looked up, not multiplied; where it is tied it counts once, as the head. Attention scores
are left out: they depend on the context's length, and compressing experts does not change them. The token is
one of text: what a multimodal model sees and hears with does not work on it.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints.expert_headers import Headers, RoutedTensor, config_top_k, routed_tensors
from mergemoe.checkpoints.model_folder import read_config, read_headers
from mergemoe.errors import UserError

_HEAD = re.compile(r"^head\.weight$|(^|\.)(lm_head|unembed|output|embed_out)\.weight$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed|embed_in|embed_tokens|embeddings|shared|tok_embeddings|word_embeddings|wte)\.weight$"
)
_TABLE = re.compile(r"(^|\.)(embed_tokens_per_layer|ngram_embedding\.\w+)\.weight$")  # never tied: only looked up


def count_cost(folder: str | Path, headers: Headers | None = None) -> dict[str, float]:
    """Return the parameters, bytes and FLOPs per token of a checkpoint folder.

    Parameters are the stored floating-point numbers; buffers of whole numbers such as `expert_map` are not. `headers`
    count in place of the folder's own, as those that a quantized checkpoint will have.

    Raises:
        UserError: where the folder is no safetensors checkpoint, or has experts and does not say how many work.
    """
    config = read_config(folder)
    headers = {
        key: header
        for key, header in (headers or read_headers(folder)).items()
        if "F" in header["dtype"] and header["bytes"]
    }
    if config.get("tie_word_embeddings") and any(map(_EMBEDDING.search, headers)):
        headers = {key: header for key, header in headers.items() if not _HEAD.search(key)}  # a stored copy
    shares = _shares(headers, config, folder)
    return {
        "parameters": sum(math.prod(header["shape"]) for header in headers.values()),
        "bytes": sum(header["bytes"] for header in headers.values()),
        "flops_per_token": 2.0 * sum(math.prod(headers[key]["shape"]) * share for key, share in shares.items()),
    }


def _shares(headers: Headers, config: Mapping[str, Any], folder: str | Path) -> dict[str, float]:
    """Return {key: share of it that a token is multiplied with} of every matrix: K/E of routed experts, else all."""
    held, working = routed_tensors(headers, config), config_top_k(config)
    if held and working is None:
        raise UserError(f"{folder}/config.json has no num_experts_per_tok: how many experts work on a token?")
    passed = _passed(headers, config, held)
    matrices = {
        key: held.get(key)
        for key in passed
        if len(headers[key]["shape"]) >= (3 if key in held and held[key].form == "stacked" else 2)
        and (key not in held or held[key].form != "identity")
    }
    return {key: working / of.experts if of and working else 1.0 for key, of in matrices.items()}


def _passed(headers: Headers, config: Mapping[str, Any], held: Mapping[str, RoutedTensor]) -> list[str]:
    """Return the keys that a token of text passes: no tables, and nothing beside the language model but its head."""
    tied = not any(map(_HEAD.search, headers))
    keys = [key for key in headers if not _TABLE.search(key) and (tied or not _EMBEDDING.search(key))]
    if not held or not config.keys() & {"vision_config", "audio_config"}:
        return keys
    language = tuple({of.stack[: of.stack.rfind(".") + 1] for of in held.values()})  # such as model.language_model.
    return [key for key in keys if key.startswith(language) or _HEAD.search(key)]
