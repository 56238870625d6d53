"""Memory and work of the jobs of one MoE layer; job_resources.py asks for it before they run.

A solve holds k times the bytes of its layer, and Gram matrices. They grow with the square of the neurons that are
solved for together, which no k of the layer's bytes can follow. So there is one formula for each kind of solve, not for
each method: none, group by group (also of a method that is not listed here), and all groups at once (a method with the
option `memory`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mergemoe.moe import layer_sizes
from mergemoe.workflow.planning.resources.solve_work import UNSOLVED, Way, pooled, solve_work, unions_work

GRAM = 6.5  # times the bytes of Gram matrix and cross moments in float64: fitted, held out, damped, factored
CHUNK = 4096  # tokens that are read at once


class Held(NamedTuple):
    """Bytes at the worst moment of a job: tensors, which a GPU would hold, and what only the host holds beside them.

    disk: bytes written; flops: as in Need.
    """

    tensors: float = 0
    host: float = 0
    disk: float = 0
    flops: float = 0

    def then(self, other: "Held") -> "Held":
        """Return the needs of a job that does one after the other, and writes both."""
        most = (max(mine, its) for mine, its in zip(self[:2], other[:2], strict=True))
        return Held(*most, disk=self.disk + other.disk, flops=self.flops + other.flops)


class Layer(NamedTuple):
    """N experts that become M.

    numbers, bytes: of all N as they are stored; largest: experts of the largest group; tokens: of the calibration;
    inside: whether the grouping's range has the layer.
    """

    experts: int
    kept: int
    width: int
    kept_width: int
    largest: int
    numbers: int
    bytes: int
    hidden: int
    top_k: int
    tokens: int
    inside: bool

    @property
    def flops(self) -> float:
        """Return the work of every expert on every token."""
        return 2 * self.tokens * self.numbers

    @property
    def chunk(self) -> int:
        """Return the bytes of a chunk of tokens on its way through experts and features."""
        return 100 * self.hidden * min(self.tokens, CHUNK)

    def grams(self, matrices: int, size: int) -> Held:
        """Return the memory of Gram matrices [size, size] and cross moments [size, H] and what is made of them."""
        entries = matrices * size * (size + self.hidden)
        return Held(8 * GRAM * entries, flops=entries * (2 * self.tokens * self.top_k / self.experts + 10 * size))

    def pools(self) -> Held:
        """Return the memory of the Gram matrices of all neurons of groups, as many at once as fit a batch."""
        size = self.width * self.largest
        at_once = min(self.kept, max(1, layer_sizes.GRAM_BYTES // (8 * size**2)))
        return Held(self.grams(at_once, size).tensors + self.chunk)


def solve_held(layer: Layer, method: str, options: Mapping[str, Any]) -> Held:
    """Return the memory of a solve: experts and features; then its Gram matrices, or the result and its check."""
    result, share = 1.3, layer.kept_width / layer.width
    written = layer.kept if share < 1 or "memory" in options else min(layer.kept, layer.experts - layer.kept)
    way = "direct"
    if "memory" in options:
        grams, way = _joint(layer, options)
    elif method in UNSOLVED:
        grams = Held()
        if layer.largest == share == 1:  # experts are pruned, none is made
            result = written = 0
    else:
        grams = layer.grams(written, layer.kept_width)
    if pooled(method, options):
        pools = layer.pools()
        grams = grams._replace(tensors=max(grams.tensors, pools.tensors))
    if method == "oracle":  # each expert is as wide as the largest group
        written, share = layer.kept, layer.largest
        grams = Held(8 * layer.numbers * written * share / layer.experts)
    held = 4 * layer.numbers * 1.8 + layer.chunk + max(4 * layer.numbers * result, grams.tensors)
    disk = layer.bytes * written * share / layer.experts + grams.disk
    return Held(held, disk=disk, flops=solve_work(layer, method, options, way))


def _joint(layer: Layer, options: Mapping[str, Any]) -> tuple[Held, Way]:
    """Return the memory of a solve of all groups at once, besides experts, and the way that `memory` leaves it."""
    columns, memory, tokens = layer.kept * layer.kept_width, 1e9 * options["memory"], layer.tokens
    grams, rows = layer.grams(1, columns), 8 * columns * layer.hidden
    if grams.tensors <= memory:
        return grams, "direct"
    features = tokens * (min(layer.top_k, layer.kept) * (4 * layer.kept_width + 12) + 8 * layer.hidden)
    kernel = features + 8 * tokens * (2 * tokens + 4 * layer.hidden + 4 * layer.kept_width)
    if features > memory / 2:
        way: Way = "streamed"
    else:
        way = "kernel" if kernel <= memory else "iterative"
    blocks = 8 * layer.kept * layer.kept_width**2
    return Held(memory + 3 * rows, disk=0 if way == "kernel" else 9 * rows + blocks), way  # states and solutions


def unions_held(layer: Layer, quick: bool) -> Held:
    """Return the memory of comparing all unions of two groups, besides experts; a quick search has a sketch of them."""
    outputs = layer.hidden
    if quick:
        outputs = layer_sizes.quarter(outputs)
        width, numbers = (layer_sizes.quarter(count) for count in (layer.width, layer.numbers))
        layer = layer._replace(width=width, numbers=numbers)
    fit = layer_sizes.features_fit(layer.experts, layer.width, layer.tokens)
    features = 4 * layer.experts * layer.width * layer.tokens if fit else 0
    return Held(features + layer.pools().tensors, flops=unions_work(layer, outputs))


def halved(size: float) -> int:
    """Return the experts of a group that halvings make, if groups have `size` on the average."""
    return 1 << math.ceil(math.log2(size))
