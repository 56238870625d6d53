"""Compare two folders of results, artifact by artifact: same bytes, same payload, or the difference of the numbers.

The difference of two arrays is max |a - b| / max |a|, of two numbers |a - b| / |a|.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mergemoe.artifacts import digests, provenance
from mergemoe.errors import ArtifactError
from mergemoe.progress import track
from mergemoe.workflow.ledger import verify_results


class Difference(NamedTuple):
    """Two files of one path that differ."""

    path: str
    largest: float | None  # relative difference of the numbers inside; None if something else differs
    payload: bool  # whether the payload differs, and not only the provenance


def compare_results(before: Path, after: Path, known: Collection[str] = ()) -> tuple[int, list[Difference]]:
    """Return the number of identical results below two project folders, and every other.

    Folders in `known` are known to be the same by their hashes; `before` may lack them.
    """
    paths = sorted({*verify_results.result_files(before), *verify_results.result_files(after)})
    compared = [path for path in paths if not verify_results.is_below(path, known)]
    found = [_file(before, after, path) for path in track(compared, "artifacts compared")]
    differences = [one for one in found if one is not None]
    return len(paths) - len(differences), differences


def _file(before: Path, after: Path, path: str) -> Difference | None:
    one, other = before / path, after / path
    if not (one.is_file() and other.is_file()):
        return Difference(path, None, payload=True)
    if digests.sha256(one) == digests.sha256(other):
        return None
    try:
        # Of an artifact the payload's digest comes first: made by other code, it may say the same.
        if provenance.read_provenance(one) is not None and provenance.content_digest(one) == provenance.content_digest(
            other
        ):
            return Difference(path, 0.0, payload=False)
        return Difference(path, _largest(one, other), payload=True)
    except (ArtifactError, ValueError):
        return Difference(path, None, payload=True)


def _largest(one: Path, other: Path) -> float | None:
    if one.suffix == ".json":
        return _of_values(_payload(one), _payload(other))
    if one.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _of_arrays(load_file(one), load_file(other))
    if one.suffix == ".h5":
        return _of_arrays(_datasets(one), _datasets(other))
    return None


def _payload(path: Path) -> Any:
    whole = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in whole.items() if key != "provenance"}


def _datasets(path: Path) -> dict[str, Any]:
    from mergemoe.calibration.activation_file import Reader

    with Reader(path) as reader:
        return {name: reader.read(name, 0, len(reader.file[name])) for name in reader.file}


def _of_arrays(ones: dict[str, Any], others: dict[str, Any]) -> float | None:
    if {n: t.shape for n, t in ones.items()} != {n: t.shape for n, t in others.items()}:
        return None
    pairs = [(one.double(), others[name].double()) for name, one in ones.items() if one.numel()]
    return max((_ratio((a - b).abs().max(), a.abs().max()) for a, b in pairs), default=0.0)


def _of_values(one: Any, other: Any) -> float | None:
    """Return the largest difference of the numbers in two JSON values; None if they differ in more than numbers."""
    if _number(one) and _number(other):
        return _ratio(abs(one - other), abs(one))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        inside = [_of_values(one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        inside = [_of_values(a, b) for a, b in zip(one, other, strict=True)]
    else:
        return 0.0 if one == other else None
    sizes = [size for size in inside if size is not None]
    return max(sizes, default=0.0) if len(sizes) == len(inside) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ratio(apart: Any, size: Any) -> float:
    if float(apart) == 0:
        return 0.0
    return float(apart) / float(size) if float(size) else math.inf
