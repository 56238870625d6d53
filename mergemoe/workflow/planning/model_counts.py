"""Counts of a checkpoint from its headers and config.json, those of its plain copy if it is quantized.

They are read once in a process: Snakemake asks for every job.
"""

import functools
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mergemoe.checkpoints import config_keys, cost, expert_headers, model_folder, router_headers
from mergemoe.quantization.options import REST
from mergemoe.quantization.other_matrices import saved_bytes


class ModelCounts(NamedTuple):
    """Counts of a checkpoint.

    parameters, bytes, flops: of the whole model, flops per token. layer, layer_bytes: numbers of the largest decoder
    layer, and their bytes. outside: numbers in no layer. largest_file: bytes. routed: {layer: experts, width,
    parameters, bytes}; routers: {layer: parameters, bytes}. saved: {format: bytes that the matrices outside the experts
    lose in it}.
    """

    parameters: int
    bytes: int
    flops: float
    layer: int
    layer_bytes: int
    outside: int
    largest_file: int
    depth: int
    routed: dict[int, dict[str, int]]
    routers: dict[int, dict[str, int]]
    hidden: int
    top_k: int
    vocabulary: int
    saved: dict[str, int]


@functools.cache
def model_counts(folder: Path) -> ModelCounts:
    """Return the counts of a checkpoint."""
    config, headers = model_folder.read_config(folder), expert_headers.read_plain_headers(folder)
    files, numbers, sizes = (defaultdict[str, int](int) for _ in range(3))
    for key, header in headers.items():
        layer = found[0] if (found := re.match(r".+?\.\d+\.", key)) else ""
        files[header["file"]] += header["bytes"]
        numbers[layer] += math.prod(header["shape"])
        sizes[layer] += header["bytes"]
    outside, whole = numbers.pop("", 0), cost.count_cost(folder, headers)
    return ModelCounts(
        parameters=int(whole["parameters"]),
        bytes=int(whole["bytes"]),
        flops=whole["flops_per_token"],
        layer=max(numbers.values()),
        layer_bytes=max(size for layer, size in sizes.items() if layer),
        outside=outside,
        largest_file=max(files.values()),
        depth=len(numbers),
        routed=expert_headers.expert_sizes(headers, config),
        routers=router_headers.router_sizes(headers),
        hidden=config_keys.needed_size(config, "hidden_size"),
        top_k=config_keys.config_top_k(config) or 1,
        vocabulary=config_keys.needed_size(config, "vocabulary"),
        saved={format: saved_bytes(headers, config, format) for format in REST.words},
    )
