"""What the stages of one layer hold and compute, by what the layer is: job_resources.py asks for it before they run.

Letters as in docs/method.md: N experts of width I become M of width I', K work on a token, H is the hidden size, n are
the calibration tokens. A function adds up, in bytes, the tensors that its stage's code has at once at its worst moment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROWS, CHUNK = 65536, 4096  # tokens: digests.ROWS, and what tokens.Activations reads at once
SLOTS, GRAM_BYTES, COPIES, VECTORS = 1 << 13, 1 << 28, 6, 8  # of sums, selection, methods.joint, iterative
UNEVEN = 3  # a zipped group is counted as this many times the mean: its Gram takes the square of its experts
ITERATIONS, RIDGES = 30, 6  # of conjugate gradients per ridge; of ridge_regression.GRID
FEATURES = {"average": "plain", "msmoe": "aligned", "zipit": "zipped", "select": "selected", "slim": "selected"}
FEATURES |= dict.fromkeys(("hcsmoe", "mergemoe", "routed", "joint", "unsolved"), "usage")
JOINT = ("joint", "select", "slim")


class Peak(NamedTuple):
    """The worst moment of a job, in bytes: tensors, which a GPU would hold, and what stays on the host beside them.

    disk: bytes written; flops: multiply-adds that are computed, times 2.
    """

    tensors: float
    host: float = 0
    disk: float = 0
    flops: float = 0


class Layer(NamedTuple):
    """N experts that become M.

    numbers, stored: numbers in all N, and their bytes in the checkpoint; largest: experts of the largest group;
    tokens: n; captured: bytes of a number in the captured activations.
    """

    experts: int
    kept: int
    width: int
    kept_width: int
    hidden: int
    top_k: int
    numbers: int
    stored: int
    largest: int
    tokens: int
    captured: int

    @property
    def one(self) -> float:
        """Return the numbers in one expert."""
        return self.numbers / self.experts

    def chunk(self, each: int = 20) -> float:
        """Return the bytes of a chunk of tokens, `each` per hidden number, and of an expert in float32 on their way."""
        tokens = min(self.tokens, CHUNK)
        return tokens * (each * self.hidden + 12 * self.width + 8 * self.experts) + 4 * self.one

    @property
    def check(self) -> float:
        """Return the bytes that it takes to check a captured file: rows as they are, and once more."""
        return 2 * min(self.tokens, ROWS) * self.hidden * self.captured

    def peak(self, tensors: float, disk: float = 0, flops: float = 0) -> Peak:
        """Return the peak of a stage that first reads the layer: experts mapped and stacked, activations checked."""
        return Peak(tensors, max(0, 2 * self.stored - tensors, self.check - tensors), disk, flops)


def profile(layer: Layer) -> Peak:
    """Return what a profile needs: the experts as they are stored."""
    flops = 2 * layer.tokens * (layer.top_k * layer.one + layer.experts**2)
    return layer.peak(layer.stored + layer.chunk(), flops=flops)


def cluster(layer: Layer, by: str) -> Peak:
    """Return what a grouping needs: the experts in float32, and once as they are stored before anything else."""
    role = layer.experts * layer.width * layer.hidden  # numbers of all gates, or all ups
    work, flops = layer.chunk(), 0.0
    if by == "weights":
        work, flops = 16 * role, 4 * layer.experts * role  # two roles at once in float64
    elif by == "outputs":
        flops = 2 * layer.tokens * layer.numbers
    elif by == "selection":
        work, flops = _pairs(layer)
    return layer.peak(4 * layer.numbers + max(work, layer.stored), flops=flops)


def curve(layer: Layer, by: str, sizes: Sequence[tuple[int, int]]) -> Peak:
    """Return what a curve needs: a grouping and a solve group by group for each of the sizes (M, I')."""
    layers = [layer._replace(kept=m, kept_width=width, largest=doubled(layer.experts / m)) for m, width in sizes]
    features = {"features": "selected" if by == "selection" else "usage"}
    grouped, solved = cluster(layers[0], by), [solve(one, "routed", features) for one in layers]
    flops = grouped.flops + sum(one.flops for one in solved)
    return layer.peak(max(grouped.tensors, *(one.tensors for one in solved)), flops=flops)


def solve(layer: Layer, method: str, options: Mapping[str, Any]) -> Peak:
    """Return what a solve needs: the experts as stored and in float32, and the worst of making, solving and ending."""
    features, size = options.get("features") or FEATURES.get(method), layer.stored / layer.numbers
    groups = groups_of(layer, method)
    experts = groups * layer.one * layer.kept_width / layer.width
    compact = layer.kept * layer.one * layer.kept_width / layer.width
    if method == "oracle":
        experts = compact = layer.kept * layer.one * layer.largest
    made = experts * (4 if method == "oracle" or features == "selected" else 8)
    making, flops = _features(layer, features, groups, method in JOINT) if groups and features else (0.0, 0.0)
    solving, more, scratch = 0.0, 0.0, 0.0
    if method in ("mergemoe", "routed"):
        solving, more = _by_group(layer, layer.experts if method == "mergemoe" else layer.top_k)
    elif method in JOINT:
        solving, more, scratch = _jointly(layer, options)
    # The result, and the layer with it in float32: one of its roles twice, or a chunk of tokens on its way through it.
    ending = size * experts + 4 * compact + max(4 / 3 * (compact + experts), layer.chunk(48))
    held = layer.stored * (size < 4) + 4 * layer.numbers + made + max(making, solving, ending)
    errors = 4 * layer.tokens * layer.top_k * layer.one
    return layer.peak(held, size * experts + scratch, flops + more + errors)


def groups_of(layer: Layer, method: str) -> int:
    """Return how many groups a method makes anew: all where it is joint or narrows, else those of several experts."""
    if method in ("reap", "none"):
        return 0
    narrower = layer.kept_width < layer.width
    return layer.kept if method in (*JOINT, "oracle") or narrower else min(layer.kept, layer.experts - layer.kept)


def doubled(size: float) -> int:
    """Return the experts of a group that halvings make, where groups have `size` on the average."""
    return 1 << math.ceil(math.log2(size))


def _pools(layer: Layer, wide: int, crosses: int, most: int) -> float:
    """Return the bytes of pools of `wide` neurons whose sums are held at once, and of their tokens."""
    at_once = min(max(1, GRAM_BYTES // (8 * wide**2)), most)
    return 8 * at_once * wide * (3.5 * wide + crosses * layer.hidden) + 16 * SLOTS * (wide + layer.hidden)


def _pairs(layer: Layer) -> tuple[float, float]:
    """Return the bytes and FLOPs of the costs of all unions, halving by halving, beside each group's own sums."""
    n, wide, groups = layer.experts * layer.width, layer.width * layer.largest, min(layer.experts, 2 * layer.kept)
    own = 8 * n * (n / groups + layer.hidden)
    sums = layer.tokens * layer.top_k * n * (4 * layer.hidden + 3 * wide)  # each token, beside every other group
    picking = 4 * n**2 * (layer.hidden + 3 * layer.kept_width)
    return own + _pools(layer, wide, 6, groups), math.log2(max(2, layer.largest)) * (sums + picking)


def _features(layer: Layer, named: str, groups: int, single: bool) -> tuple[float, float]:
    """Return the bytes, besides the result, and FLOPs of groups' features; `single` experts are groups or are not."""
    matrix, wide = layer.width * layer.hidden, layer.width * layer.largest
    member = (8 if named == "aligned" else 4) * layer.one + (16 if named == "aligned" else 8) * matrix
    # The largest group is alone, or stands beside the others of two experts or of one.
    beside = layer.largest if single else min(layer.largest, layer.experts - layer.kept - groups + 2)
    members = max(beside * member, layer.largest * member - 8 * (groups - 1) * layer.one)
    if named == "selected":
        sums = layer.tokens * layer.top_k * (layer.one + wide * (wide + layer.hidden))
        flops = groups * wide**2 * (2 * layer.hidden + 6 * layer.kept_width) + 2 * sums
        return 4 * layer.numbers + _pools(layer, wide, 3, groups), flops
    if named == "zipped":
        wide = layer.width * min(layer.largest, math.ceil(UNEVEN * layer.experts / layer.kept))
        at_once = min(max(1, GRAM_BYTES // (8 * wide**2)), groups)
        return members + 8 * at_once * wide**2 + 28 * CHUNK * wide, 2 * layer.tokens * layer.top_k * wide**2
    if named == "aligned":
        return members, 6 * layer.experts * layer.width * matrix
    return members, 2 * layer.numbers


def _by_group(layer: Layer, asked: int) -> tuple[float, float]:
    """Return the bytes, besides the features, and FLOPs of a least squares per group; `asked` experts see a token."""
    groups = max(1, groups_of(layer, "routed"))
    square, cross = layer.kept_width**2, layer.kept_width * layer.hidden
    chunk, in_groups = min(layer.tokens, CHUNK), min(asked, groups)
    slots = min(max(SLOTS, chunk), chunk * in_groups)
    at_once = max(1, slots * groups // (chunk * in_groups))
    batch = slots * (20 * layer.kept_width + 40 * layer.hidden) + 16 * at_once * max(square, cross)
    joined = 8 * groups * layer.one * layer.kept_width / layer.width
    tries = 1 if asked == layer.experts else RIDGES
    flops = 2 * layer.tokens * (asked * layer.one + in_groups * (square + 3 * cross))
    flops += groups * square * (10 * layer.kept_width + tries * 8 * layer.hidden)
    return 16 * groups * (square + cross) + max(joined + batch, 8 * groups * (2 * square + 6 * cross)), flops


def _jointly(layer: Layer, options: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the bytes, besides the features, FLOPs and scratch of a joint solve: iterative beyond its `memory`."""
    columns, used = layer.kept * layer.kept_width, min(layer.top_k, layer.kept) * layer.kept_width
    direct, memory = 8 * COPIES * columns * (columns + layer.hidden), options["memory"] * 1e9
    ridges = RIDGES if options["ridge"] == "auto" else 1
    batch = min(layer.tokens, CHUNK) * (10 * used + 24 * layer.hidden)
    asked = 2 * layer.tokens * layer.top_k * layer.one
    if direct <= memory:
        sums = 2 * layer.tokens * used * (used + layer.hidden)
        return direct + batch, asked + sums + columns**2 * (3 * columns + ridges * (columns / 3 + 8 * layer.hidden)), 0
    blocks, rows = 8 * columns * (layer.kept_width + 2), 8 * columns * layer.hidden
    passes = ridges * ITERATIONS * (asked + 4 * layer.tokens * used * layer.hidden)
    held = min(memory, blocks + VECTORS * rows) + 3 * rows
    return held + batch, passes + 10 * columns * layer.kept_width**2, blocks + (3 + ridges) * rows
