"""Count a checkpoint's parameters, bytes and FLOPs from its headers, without reading weights or building a model.

A token is multiplied with every matrix once, except that only K of a layer's E experts work on it. With n the number of
elements of a matrix,

    flops_per_token = 2 (sum of n over matrices outside the experts + sum over layers of K/E sum of n over experts)

The embedding is looked up, not multiplied; if it is tied, it counts once, as the head. Attention scores are not
counted: they depend on the context length, and compressing experts does not change them. Vision and audio towers are
not counted, because the token is a token of text.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints.config_keys import config_top_k
from mergemoe.checkpoints.expert_headers import Headers, RoutedTensor, routed_tensors
from mergemoe.checkpoints.model_folder import read_config, read_headers
from mergemoe.errors import UserError

_HEAD = re.compile(r"^head\.weight$|(^|\.)(lm_head|unembed|output|embed_out)\.weight$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed|embed_in|embed_tokens|embeddings|shared|tok_embeddings|word_embeddings|wte)\.weight$"
)
_TABLE = re.compile(r"(^|\.)(embed_tokens_per_layer|ngram_embedding\.\w+)\.weight$")  # only looked up, never tied


def count_cost(folder: str | Path, headers: Headers | None = None) -> dict[str, float]:
    """Return the parameters, bytes and FLOPs per token of a checkpoint folder.

    Parameters are the stored floating-point numbers; integer buffers such as `expert_map` do not count. `headers`
    replace the folder's own, for example by those of a quantized checkpoint's plain copy.

    Raises:
        UserError: the folder is no safetensors checkpoint, or config.json does not state the experts per token.
    """
    config = read_config(folder)
    headers = counted_headers(headers or read_headers(folder), config)
    shares = _shares(headers, config, folder)
    return {
        "parameters": sum(math.prod(header["shape"]) for header in headers.values()),
        "bytes": sum(header["bytes"] for header in headers.values()),
        "flops_per_token": 2.0 * sum(math.prod(headers[key]["shape"]) * share for key, share in shares.items()),
    }


def counted_headers(headers: Headers, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the headers of a checkpoint's floating-point numbers, without a head that is a copy of the embedding."""
    found = {key: header for key, header in headers.items() if "F" in header["dtype"] and header["bytes"]}
    if config.get("tie_word_embeddings") and any(map(_EMBEDDING.search, found)):
        return {key: header for key, header in found.items() if not _HEAD.search(key)}
    return found


def _shares(headers: Headers, config: Mapping[str, Any], folder: str | Path) -> dict[str, float]:
    """Return {key: the share of the matrix that works on a token}: K/E for routed experts, 1 for the others."""
    held, working = routed_tensors(headers, config), config_top_k(config)
    if held and working is None:
        raise UserError(
            f"{folder}/config.json: num_experts_per_tok is missing, so the FLOPs of a token are not known. Add the "
            "number of experts that work on a token"
        )
    passed = _passed(headers, config, held)
    matrices = {
        key: held.get(key)
        for key in passed
        if len(headers[key]["shape"]) >= (3 if key in held and held[key].form == "stacked" else 2)
        and (key not in held or held[key].form != "identity")
    }
    return {key: working / of.experts if of and working else 1.0 for key, of in matrices.items()}


def _passed(headers: Headers, config: Mapping[str, Any], held: Mapping[str, RoutedTensor]) -> list[str]:
    """Return the keys of the tensors that work on a token of text: the language model and its head, without tables."""
    tied = not any(map(_HEAD.search, headers))
    keys = [key for key in headers if not _TABLE.search(key) and (tied or not _EMBEDDING.search(key))]
    if not held or not config.keys() & {"vision_config", "audio_config"}:
        return keys
    language = tuple({of.stack[: of.stack.rfind(".") + 1] for of in held.values()})  # such as model.language_model.
    return [key for key in keys if key.startswith(language) or _HEAD.search(key)]
