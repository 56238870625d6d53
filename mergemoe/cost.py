"""What a checkpoint costs, counted from its headers: no weight is read, no model is built, nothing is timed.

A token is multiplied with every matrix once, but with K of the E experts of a layer only. So, with n the
numbers in a matrix,

    flops_per_token = 2 (sum of n over matrices outside the experts + sum over layers of K/E sum of n over experts)

The embedding is looked up, not multiplied; where it is tied it counts once, as the head. Attention scores
are left out: they depend on the context's length, and compressing experts does not change them.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoint import read_config, read_headers
from mergemoe.errors import UserError

_TOP_K = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k")
_HEAD = re.compile(r"(^|\.)(lm_head|output|embed_out)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
_EXPERT = re.compile(r"(?P<module>.*\.experts)\.(?P<index>\d+)\.")  # one key per expert
_FUSED = re.compile(r"\.experts\.|\.block_sparse_moe\.(in|out)put_linear\.")  # one key for all, [E, ...]

Headers = Mapping[str, Mapping[str, Any]]


def count(folder: str | Path) -> dict[str, float]:
    """Return the parameters, bytes and FLOPs per token of a checkpoint folder.

    Parameters are the stored floating-point numbers; buffers of whole numbers such as `expert_map` are not.

    Raises:
        UserError: where the folder is no safetensors checkpoint, or has experts and does not say how many work.
    """
    config = read_config(folder)
    config = {**config, **config.get("text_config", {})}
    headers = {key: header for key, header in read_headers(folder).items() if "F" in header["dtype"]}
    if config.get("tie_word_embeddings") and any(map(_EMBEDDING.search, headers)):
        headers = {key: header for key, header in headers.items() if not _HEAD.search(key)}  # a stored copy
    shares = _expert_shares(headers, config, folder)
    tied = not any(map(_HEAD.search, headers))
    applied = sum(
        math.prod(header["shape"]) * shares.get(key, 1.0)
        for key, header in headers.items()
        if _is_matrix(key, header["shape"]) and (tied or not _EMBEDDING.search(key))
    )
    return {
        "parameters": sum(math.prod(header["shape"]) for header in headers.values()),
        "bytes": sum(header["bytes"] for header in headers.values()),
        "flops_per_token": 2.0 * applied,
    }


def _is_matrix(key: str, shape: list[int]) -> bool:
    """Tell a matrix from a vector; a tensor that stacks the experts has one dimension more."""
    stacked = _FUSED.search(key) and not _EXPERT.match(key)
    return len(shape) >= (3 if stacked else 2)


def _expert_shares(headers: Headers, config: Mapping[str, Any], folder: str | Path) -> dict[str, float]:
    """Return {key: K/E} of every tensor of routed experts."""
    indices = {(match["module"], match["index"]) for match in map(_EXPERT.match, headers) if match}
    members = Counter(module for module, _ in indices)
    experts = {}
    for key, header in headers.items():
        if match := _EXPERT.match(key):
            experts[key] = members[match["module"]]
        elif _FUSED.search(key):
            experts[key] = header["shape"][0]
    top_k = next((config[name] for name in _TOP_K if isinstance(config.get(name), int)), None)
    if experts and top_k is None:
        raise UserError(f"{folder}/config.json says none of {', '.join(_TOP_K)}: how many experts work on a token?")
    return {key: top_k / number for key, number in experts.items()} if top_k else {}
