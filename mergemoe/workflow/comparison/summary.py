"""Summaries of results: what a comparison needs where the recorded files themselves are not at hand.

A part of a file has decisions (names, shapes, whole numbers, text, and how JSON is nested), kept as a digest, a map of
experts to groups as it is; and numbers, kept as their norm and SUMS sums with random signs. If the difference of two
arrays has the norm d, such a sum of one differs from the other's by d, in the root mean square (Johnson and
Lindenstrauss, 1984). So the sums tell d without the arrays; with eight of them, d is right to about a quarter.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mergemoe.artifacts import digests
from mergemoe.artifacts.paths import METRICS
from mergemoe.artifacts.reading import reading

SUMS = 8
ROWS = 65536  # of a capture, read at once
COLUMNS = 4093  # of signs; prime, so that no width of a model divides it
DIGITS = 12  # of a number that is kept
SHORT = 16  # of a digest that is kept
NUMBER = [0]  # stands for one in a digest; no other end of a branch of JSON is a list with an entry
SUFFIXES = (".json", ".safetensors", ".h5")
LISTED = "expert_map"  # a decision that is kept itself
CHOSEN = "chosen"  # which experts each token chose, as numbers 0 and 1


class Apart(NamedTuple):
    """How two results differ.

    decisions: the parts that differ in more than numbers; of expert_map it says of which experts.
    numbers: {part: ||a - b|| / ||a||} of the others that differ.
    """

    decisions: list[str]
    numbers: dict[str, float]


def has_summary(path: str) -> bool:
    """Tell whether a result has a summary: pages and cards show what others hold, and metrics.json has the scores."""
    scores = path == METRICS or (path.startswith("results/scores/") and path.endswith(".json"))
    return path.endswith(SUFFIXES) and not scores and Path(path).name != "provenance.json"


def summarize(path: Path) -> dict[str, Any]:
    """Return {part: its digest, and its norm and sums if it has numbers} of a result.

    Raises:
        ArtifactError: it cannot be read.
    """
    with reading(path):
        if path.suffix == ".json":
            return _of_json(json.loads(path.read_text(encoding="utf-8")))
        return _of_arrays((_tensors if path.suffix == ".safetensors" else _rows)(path))


def compare_summaries(one: Mapping[str, Any], other: Mapping[str, Any]) -> Apart:
    """Compare the summaries of two results of one path; the first is the recorded one."""
    decisions, numbers = sorted(one.keys() ^ other.keys()), dict[str, float]()
    for name in sorted(one.keys() & other.keys()):
        a, b = dict(one[name]), dict(other[name])
        (size, sums), (_, others) = ((part.pop("norm", None), part.pop("sums", [])) for part in (a, b))
        if a != b or len(sums) != len(others):
            decisions.append(name + _where(a.get("value"), b.get("value")))
        elif sums != others:
            far = float(np.sqrt(np.mean(np.subtract(sums, others) ** 2)))
            numbers[name] = far / size if size else float("inf")
    return Apart(decisions, numbers)


def _where(recorded: list[int] | None, here: list[int] | None) -> str:
    """Return which experts are in another group, for a map of experts to groups."""
    if not recorded or not here or len(recorded) != len(here):
        return ""
    moved = (str(expert) for expert, (a, b) in enumerate(zip(recorded, here, strict=True)) if a != b)
    return f" of {', '.join(moved)}"


def _of_json(whole: Any) -> dict[str, Any]:
    """Return the summary of a JSON value: what has the same keys, at any place in lists, is one part.

    A file that is no artifact, such as a tokenizer's, is one decision.
    """
    if not isinstance(whole, dict) or "provenance" not in whole:
        return {"the file": {"digest": digests.digest_json(whole)[:SHORT]}}
    numbers: dict[str, list[float]] = {}
    rest: dict[str, list[Any]] = {}

    def walk(value: Any, keys: tuple[str, ...], place: tuple[int, ...]) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                if keys or key != "provenance":
                    walk(inner, (*keys, key), place)
        elif isinstance(value, list) and value:
            for i, inner in enumerate(value):
                walk(inner, keys, (*place, i))
        else:
            number = isinstance(value, float)
            rest.setdefault(".".join(keys), []).append([place, NUMBER if number else value])
            if number:
                numbers.setdefault(".".join(keys), []).append(value)

    walk(whole, (), ())
    found = _of_arrays(((name, np.array(each)) for name, each in numbers.items()), part=str)
    kept = {LISTED: {"value": whole[LISTED]}} if LISTED in whole else {}
    return {
        name: {**found.get(name, {}), **kept.get(name, {}), "digest": digests.digest_json(each)[:SHORT]}
        for name, each in rest.items()
    }


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            whole = file.get_slice(name)
            if len(shape := whole.get_shape()) < 3:
                yield name, _numpy(whole[...])
                continue
            yield from ((f"{name}.{i}", _numpy(whole[i])) for i in range(shape[0]))  # experts, one by one


def _rows(path: Path) -> Iterator[tuple[str, np.ndarray]]:
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


def _alike(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def _of_arrays(arrays: Iterable[tuple[str, np.ndarray]], part: Callable[[str], str] = _alike) -> dict[str, Any]:
    """Return the summary of named arrays by part: those whose names differ in numbers alone are one."""
    wholes: dict[str, Any] = {}
    squares: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}
    for i, (full, array) in enumerate(arrays):
        name = part(full)
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
