"""The arithmetic of a solve: operations in float32, those in float64 counting twice.

T tokens choose K of N experts of I neurons; M experts of P neurons are kept. benchmarks/layer.py times whole layers
beside these counts (docs/performance.md).
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from mergemoe.moe.layer_sizes import MIXTURES, features_fit

if TYPE_CHECKING:
    from mergemoe.workflow.planning.resources.layer_resources import Layer

Way = Literal["direct", "kernel", "iterative", "streamed"]
UNSOLVED = ("average", "msmoe", "hcsmoe", "zipit", "oracle", "reap", "unsolved")
DOUBLE = 2  # operations in float32 that take as long as one in float64
RIDGES, TRIED = 6, 4  # values that `ridge: auto` has, and that it tries where one takes long
ROUGH, EXACT = 40, 25  # passes of conjugate gradients: for the mixtures at all ridges, for the solution
EIGEN = 10  # times P^3, for the eigenvalues and vectors of P x P numbers


def solve_work(layer: "Layer", method: str, options: Mapping[str, Any], way: Way) -> float:
    """Return the work of a solve; `way` is that of a joint one."""
    work = forward_work(layer)  # the error of the result
    if method == "mergemoe":
        return work + _mergemoe(layer)
    if pooled(method, options):
        work += _selection(layer)
    if method in ("joint", "select", "slim"):
        columns = layer.kept * layer.kept_width
        few = options.get("ridge") == "auto" and layer.tokens < 2 * columns
        ways = {"direct": _direct, "kernel": _kernel, "iterative": _iterative, "streamed": _streamed}
        return work + ways[way](layer, options) + (_by_group(layer, options) if few else 0)
    return work + (0 if method in UNSOLVED else _by_group(layer, options))


def pooled(method: str, options: Mapping[str, Any]) -> bool:
    """Tell whether features need the Gram matrix of all neurons of a group."""
    return method in ("zipit", "select", "slim") or options.get("features") in ("selected", "zipped")


def forward_work(layer: "Layer") -> float:
    """Return the work of the layer's output and the merged layer's."""
    return _choices(layer) * 2 * layer.numbers / layer.experts * (1 + layer.kept_width / layer.width)


def _choices(layer: "Layer") -> int:
    return layer.tokens * layer.top_k


def _target(layer: "Layer") -> float:
    return _choices(layer) * 2 * layer.numbers / layer.experts


def _features(layer: "Layer", width: float) -> float:
    """Return the work of the features of an expert, so wide, on one token."""
    matrices = round(layer.numbers / (layer.experts * layer.hidden * layer.width))
    return 2 * (matrices - 1) * layer.hidden * width


def _sums(layer: "Layer", width: float) -> float:
    """Return the work of features, half of P P^T, and Y P^T, per choice of a group so wide."""
    return _features(layer, width) + DOUBLE * (width**2 + 2 * layer.hidden * width)


def _dense(layer: "Layer", columns: float, options: Mapping[str, Any]) -> float:
    """Return the work of solves with so many unknowns per row: by mixtures for all ridges, then for all rows."""
    ridges = RIDGES if options.get("ridge") == "auto" else 0
    rough = ridges * (columns**3 / 3 + 4 * min(MIXTURES, layer.hidden) * columns**2)
    return DOUBLE * (rough + columns**3 / 3 + 8 * layer.hidden * columns**2)


def _mergemoe(layer: "Layer") -> float:
    """Return the work on all tokens: features and H_j P^T of each member, half of P P^T of each group."""
    merged = min(layer.kept, layer.experts - layer.kept)
    members, square = layer.experts - layer.kept + merged, layer.width**2
    sums = layer.tokens * (members * (_features(layer, layer.width) + 2 * square) + DOUBLE * merged * square)
    products = 2 * members * layer.hidden * square
    return sums + products + DOUBLE * merged * square * (2 * layer.hidden + EIGEN * layer.width)


def _selection(layer: "Layer") -> float:
    """Return the work of choosing neurons of groups that are as large as the mean."""
    pool = layer.width * layer.experts / layer.kept
    steps = layer.hidden * pool**2 + 6 * pool**2 * layer.kept_width
    return _target(layer) + _choices(layer) * _sums(layer, pool) + DOUBLE * layer.kept * steps


def unions_work(layer: "Layer", outputs: int) -> float:
    """Return the work of comparing all unions of two experts: their features, their sums, their best neurons."""
    others, square = layer.experts - 1, layer.width**2
    fit = features_fit(layer.experts, layer.width, layer.tokens)
    met = layer.tokens * layer.experts if fit else _choices(layer) * others  # an expert meets the tokens of the others
    sums = DOUBLE * 6 * square * _choices(layer) * others
    best = DOUBLE * 4 * square * (outputs + 6 * layer.width) * layer.experts * others / 2
    return met * _features(layer, layer.width) + sums + best


def _by_group(layer: "Layer", options: Mapping[str, Any]) -> float:
    sums = _target(layer) + _choices(layer) * _sums(layer, layer.kept_width)
    return sums + layer.kept * _dense(layer, layer.kept_width, options)


def _direct(layer: "Layer", options: Mapping[str, Any]) -> float:
    columns, pairs = layer.kept * layer.kept_width, (layer.top_k - 1) / 2
    blocks = _choices(layer) * pairs * DOUBLE * 2 * layer.kept_width**2
    dense = _dense(layer, columns, options) + DOUBLE * EIGEN / 2 * columns**3
    return _target(layer) + _choices(layer) * _sums(layer, layer.kept_width) + blocks + dense


def _kernel(layer: "Layer", options: Mapping[str, Any]) -> float:
    """Return the work of the dual form: blocks of groups, twice as large as if all were used alike, and the tokens'."""
    width, ridges = layer.kept_width, TRIED if options.get("ridge") == "auto" else 0
    sums = _target(layer) + _choices(layer) * (_features(layer, width) + DOUBLE * 6 * layer.hidden * width)
    blocks = 2 * _choices(layer) ** 2 / layer.kept * width
    rough = ridges * (layer.tokens**3 / 3 + 2 * min(MIXTURES, layer.hidden) * layer.tokens**2)
    return sums + DOUBLE * (blocks + rough + layer.tokens**3 / 3 + 2 * layer.hidden * layer.tokens**2)


def _iterative(layer: "Layer", options: Mapping[str, Any]) -> float:
    """Return the work of conjugate gradients: products over the choices and with the blocks, for some rows."""
    width = layer.kept_width
    once = _target(layer) + _choices(layer) * (_features(layer, width) + DOUBLE * width**2)
    row = 4 * (_choices(layer) * width + layer.kept * width**2)
    rows = EXACT * layer.hidden + (ROUGH * min(MIXTURES, layer.hidden) if options.get("ridge") == "auto" else 0)
    exact = 4 * DOUBLE * layer.hidden * row  # residuals in float64, and the errors of the result
    return once + DOUBLE * EIGEN * layer.kept * width**3 + rows * row + exact


def _streamed(layer: "Layer", options: Mapping[str, Any]) -> float:
    """Return the same where features have no room: each pass computes them, for as many rows as fit `memory`."""
    row = 8 * 8 * layer.kept * layer.kept_width  # bytes of what a solve holds per row
    parts = math.ceil(layer.hidden * row / (1e9 * options["memory"]))
    passes = (EXACT + 4) * parts + (ROUGH if options.get("ridge") == "auto" else 0)
    features = _choices(layer) * _features(layer, layer.kept_width) * passes
    return _iterative(layer, options) + features + 4 * parts * _target(layer)
