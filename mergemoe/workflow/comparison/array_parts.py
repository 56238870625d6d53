"""Summaries of arrays: of each part a digest of names, types, shapes and whole numbers, a norm and SUMS sums.

If the difference of two arrays has the norm d, a sum of one with random signs differs from the other's by d, in the
root mean square (Johnson and Lindenstrauss, 1984). So the sums tell d without the arrays; with eight of them, d is
right to about a quarter.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mergemoe.artifacts import digests

SUMS = 8
ROWS = 65536  # of a capture, read at once
COLUMNS = 4093  # of signs; prime, so that no width of a model divides it
DIGITS = 12  # of a number that is kept
SHORT = 16  # of a digest that is kept
CHOSEN = "chosen"  # which experts each token chose, as numbers 0 and 1


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the named arrays of a safetensors file; experts that lie in one tensor one by one."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            whole = file.get_slice(name)
            if len(shape := whole.get_shape()) < 3:
                yield name, _numpy(whole[...])
                continue
            yield from ((f"{name}.{i}", _numpy(whole[i])) for i in range(shape[0]))


def read_rows(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the named arrays of a captured layer, ROWS tokens at once, and which experts they chose."""
    from mergemoe.calibration.activation_file import Reader

    with Reader(path) as reader:
        yield "heldout", reader.file["heldout"][:]
        for name in sorted(reader.file.keys() - {"heldout"}):
            for start in range(0, len(reader.file[name]), ROWS):
                rows = _numpy(reader.read(name, start, ROWS))
                yield f"{name}.{start}", rows
                if name == "router_logits":
                    index = reader.read("expert_index", start, ROWS).numpy()
                    yield f"{CHOSEN}.{start}", _chosen(index, rows.shape[1])


def _chosen(index: np.ndarray, experts: int) -> np.ndarray:
    """Return 1 for each of N experts that a token chose, else 0; the last column is for -1, no expert."""
    chosen = np.zeros((len(index), experts + 1), np.float32)
    np.put_along_axis(chosen, index.astype(np.int64), np.float32(1), axis=1)
    return chosen


def _numpy(tensor: Any) -> np.ndarray:
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def part_of(name: str) -> str:
    """Return the part that a tensor belongs to: names that differ in numbers are one, but a checkpoint's layers."""
    return re.sub(r"(?<!layers\.)(?<!\d)\d+", "N", name)


def summarize_arrays(
    arrays: Iterable[tuple[str, np.ndarray]], part: Callable[[str], str] = part_of
) -> dict[str, dict[str, Any]]:
    """Return {part: its digest, and its norm and sums if it has numbers} of named arrays."""
    wholes: dict[str, Any] = {}
    squares: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for full, array in arrays:
        name = part(full)
        i = counts[name] = counts.get(name, -1) + 1  # a part's sums do not depend on the other parts
        whole = wholes.setdefault(name, hashlib.sha256())
        whole.update(digests.canonical([full, str(array.dtype), list(array.shape)]).encode())
        if array.dtype.kind != "f":
            whole.update(np.ascontiguousarray(array).tobytes())
            continue
        flat = np.ascontiguousarray(array, np.float64).ravel()
        squares[name] = squares.get(name, 0.0) + float(np.einsum("i,i", flat, flat))  # without BLAS and its threads
        sums[name] = sums.get(name, np.zeros(SUMS)) + _sums(flat) * _signs(1, seed=(2, i))[0]
    numbers = {
        name: {"norm": _kept(squares[name] ** 0.5), "sums": [_kept(each) for each in sums[name].tolist()]}
        for name in sums
    }
    return {name: {"digest": whole.hexdigest()[:SHORT], **numbers.get(name, {})} for name, whole in wholes.items()}


def _sums(flat: np.ndarray) -> np.ndarray:
    """Return the sums [SUMS] of an array with random signs: those of its place's column times those of its row."""
    rows, rest = divmod(len(flat), COLUMNS)
    of_rows = flat[: rows * COLUMNS].reshape(rows, COLUMNS) @ _of_columns()
    of_rows = np.concatenate([of_rows, flat[None, len(flat) - rest :] @ _of_columns()[:rest]])
    return (of_rows * _signs(rows + 1, seed=(1,))).sum(0)


@functools.cache
def _of_columns() -> np.ndarray:
    return _signs(COLUMNS, seed=(0,))


def _signs(rows: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (rows, SUMS)) * 2.0 - 1


def _kept(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
