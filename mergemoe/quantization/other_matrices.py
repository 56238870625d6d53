"""The matrices outside the routed experts that a format may round: attention, shared experts, embeddings.

Routers and gates of shared experts stay, as in llama.cpp: they are small, and a token's choice of experts depends on
them.
This module imports no torch: the plan counts with it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from mergemoe.checkpoints.cost import counted_headers
from mergemoe.checkpoints.expert_headers import Headers, routed_tensors
from mergemoe.quantization.blocks import BLOCKS

_ROUTER = re.compile(r"(^|[._])(gate|router)\.(.+\.)?weight$")
NONE = "none"


def other_matrices(headers: Headers, config: Mapping[str, Any]) -> list[str]:
    """Return the keys of the matrices whose rows are whole blocks of GGUF; a tied head that is a copy is left out."""
    routed = routed_tensors(headers, config)
    (block,) = {numbers for numbers, _ in BLOCKS.values()}
    return [
        key
        for key, header in counted_headers(headers, config).items()
        if key not in routed
        and not _ROUTER.search(key)
        and len(header["shape"]) == 2
        and header["shape"][1] % block == 0
    ]


def saved_bytes(headers: Headers, config: Mapping[str, Any], format: str) -> int:
    """Return by how much these matrices are smaller in a format; 0 if it is none."""
    if format == NONE:
        return 0
    numbers, size = BLOCKS[format]
    kept = (headers[key] for key in other_matrices(headers, config))
    return sum(header["bytes"] - math.prod(header["shape"]) * size // numbers for header in kept)
