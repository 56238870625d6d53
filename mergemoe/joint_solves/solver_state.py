"""Saved state of an iterative solve, in its scratch folder.

A resumed solve must give the same bytes as one that was never killed, so all vectors of the descent are saved, not only
the solution so far. Files are written whole or not at all.
"""

import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from mergemoe.artifacts import store
from mergemoe.errors import ArtifactError
from mergemoe.joint_solves.rows import Rows


def saved_rows(
    folder: Path, rows: Rows, shapes: Mapping[str, Sequence[int]], ridges: Sequence[float]
) -> dict[str, Tensor] | None:
    """Return the state of some rows; None if it, or a solution that it counts as found, cannot be used."""
    saved = read_saved(state_path(folder, rows), shapes)
    found = {"deviation": shapes["deviation"], "iterations": [1], "residual": [1]}
    done: Sequence[float] = ridges[: int(saved["at"])] if saved and rows.mixtures is None else []
    return saved if all(read_saved(solution_path(folder, rows, ridge), found) for ridge in done) else None


@contextmanager
def solver_folder(scratch: Path | None) -> Generator[Path, None, None]:
    """Yield the folder of a solve, a temporary one if nothing is saved."""
    if scratch is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        yield scratch


def state_path(folder: Path, rows: Rows) -> Path:
    """Return the file with the state of some rows."""
    return folder / f"{rows.name}.safetensors"


def solution_path(folder: Path, rows: Rows, ridge: float) -> Path:
    """Return the file with the solution of some rows for a ridge."""
    return folder / f"solution_{rows.name}_{ridge:g}.safetensors"


def read_saved(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor] | None:
    """Return saved tensors; None if they are missing, damaged or of other shapes: then they are computed again."""
    if not path.exists():
        return None
    try:
        found = store.read_state(path)
    except ArtifactError as error:
        print(f"the solve does not go on from there: {error}", file=sys.stderr)
        return None
    return found if {name: list(part.shape) for name, part in found.items()} == shapes else None
