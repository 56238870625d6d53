"""The memory, scratch and arithmetic of a quantization of one layer."""

from collections.abc import Mapping
from typing import Any

from mergemoe.moe import layer_sizes
from mergemoe.workflow.planning.resources.layer_resources import Held, Layer
from mergemoe.workflow.planning.resources.refine_resources import refine_held

TRIED = 4  # numbers of bits with which each matrix is tried, if a budget of bits is spent by error
ROLES = 3


def quantize_held(layer: Layer, options: Mapping[str, Any]) -> Held:
    """Return the memory of a quantization: all experts in float32, the result, and the Gram matrices of some experts.

    A budget of bits needs what is tried before that, a descent the state of a refine after it.
    """
    size = max(layer.hidden, layer.kept_width)
    grams = layer.grams(min(layer.kept, max(1, layer_sizes.GRAM_BYTES // (8 * size**2))), size)
    result = 4 * layer.numbers * layer.kept * layer.kept_width / (layer.experts * layer.width)
    held = 4 * layer.numbers * 1.8 + layer.chunk + 3 * result
    grids = 0 if options["by"] == "round" else 3 / (4 * options["group"])  # a group beside its weights
    found = Held(held + grams.tensors, disk=(1 + grids) * result, flops=4 * layer.flops + layer.kept * grams.flops)
    if not float(options.get("bits", 0)).is_integer():
        tried = min(TRIED * result, max(TRIED * result / layer.kept, layer_sizes.GRAM_BYTES))
        found = found.then(Held(held + tried, flops=TRIED * ROLES * layer.flops))
    if options["by"] != "descent":
        return found
    descent = refine_held(layer, options)
    rounded = 2 * result  # of the weights behind them
    return found.then(descent._replace(tensors=descent.tensors + rounded))
