"""Memory, disk and work of refining one MoE layer; job_resources.py asks for it before it runs."""

from collections.abc import Mapping
from typing import Any

from mergemoe.workflow.planning.resources.layer_resources import Held, Layer

STATE = 28  # bytes of each number of the kept experts: weight, gradient, two moments, the best so far, and copies
STILL = 12  # the same, if no step is taken
BACKWARD = 3  # times the work of a forward pass: forward, and the gradients of inputs and weights
AUTO_STEPS, AUTO_PASSES = 1500, 12  # the more of these steps, and passes over the tokens, if `auto` chooses


def refine_held(layer: Layer, options: Mapping[str, Any]) -> Held:
    """Return the memory of a refine: all experts in float32, the state of the kept ones, a chunk; tokens are mapped."""
    share = layer.kept * layer.kept_width / (layer.experts * layer.width)
    one = 2 * layer.numbers / layer.experts  # the work of an original expert on a token
    seen = max(AUTO_STEPS * options["batch"], AUTO_PASSES * layer.tokens)
    if options["steps"] != "auto":
        seen = options["steps"] * options["batch"]
    targets = layer.tokens + (seen if options["targets"] == "recomputed" else 0)
    work = targets * one + BACKWARD * seen * one * layer.kept_width / layer.width
    scratch = refine_scratch(layer.tokens, layer.hidden, options["targets"])
    return Held(
        tensors=(4 + (STATE if seen else STILL) * share) * layer.numbers + layer.chunk,
        host=scratch,
        disk=scratch + layer.bytes * share,
        flops=layer.top_k * work,
    )


def refine_scratch(tokens: int, hidden: int, targets: str) -> int:
    """Return the bytes below scratch/ while a layer is refined: its inputs in float32, and its targets if kept."""
    return 4 * tokens * hidden * (2 if targets == "kept" else 1)
