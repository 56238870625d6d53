"""What a job made, under a second name, until the run that it belongs to has ended well.

Snakemake deletes a job's outputs before it runs it and after it failed. So it would lose what another copy of the job
has finished: of a run that was killed, of a node that SLURM believes dead, of a group of jobs in which another failed.
Hard links below results/.finished/ take no disk of their own; a job looks there first.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, digests, provenance, store
from mergemoe.artifacts.verify import Claims
from mergemoe.errors import ArtifactError

LISTED = "listed.json"  # of a place: {output: its files}, so that a folder counts only with all of them


def keep(outs: Sequence[Path], made: Mapping[str, Any]) -> None:
    """Link all that a job has written, in place of what could not be taken."""
    place = _place(outs, made)
    if place is None:
        return
    listed = {path.name: _files(path) for path in outs}
    try:
        shutil.rmtree(place, ignore_errors=True)
        with atomic.atomic(place) as folder:
            folder.mkdir()
            for path in outs:
                _link(path, folder / path.name)
            (folder / LISTED).write_text(json.dumps(listed))
    except OSError as error:  # a file system without hard links, and a copy would take disk
        print(f"{place}: {error}. What this job made is lost if another copy of it fails", file=sys.stderr)


def take(outs: Sequence[Path], made: Mapping[str, Any]) -> bool:
    """Put in place what another copy of a job made, and tell whether there was such; damaged files count as none."""
    place = _place(outs, made)
    if place is None or not (place / LISTED).is_file():
        return False
    listed = json.loads((place / LISTED).read_text())
    if any(_files(place / path.name) != listed[path.name] or not is_whole(place / path.name, made) for path in outs):
        return False
    for path in outs:
        with atomic.atomic(path) as temporary:
            _link(place / path.name, temporary)
    return True


def sweep(results: str | Path, claims: Claims) -> None:
    """Forget what no job will ask for, which may hold much disk: what was made otherwise than the claims say now."""
    for place in Path(results, ".finished").glob("*"):
        if not any(_claimed(file, claims) for file in place.rglob("[!.]*")):
            shutil.rmtree(place)


def clear(results: str | Path) -> None:
    """Forget all of it, since the whole run has ended well; and what killed jobs of any host have left half-written."""
    for name in (".finished", ".tmp"):
        shutil.rmtree(Path(results, name), ignore_errors=True)


def is_whole(path: Path, made: Mapping[str, Any]) -> bool:
    """Tell whether a file or a folder is there, has exactly this provenance, and holds what was written.

    Args:
        path: of an artifact.
        made: its provenance but for what its writer adds: payload, seal, the layer of a folder's file.
    """
    files = [path / name for name in _files(path)]
    try:
        listed = store.read_json(path / "provenance.json")["files"] if (path / "provenance.json").is_file() else {}
        store.check_files(path, listed)
        return bool(files) and all(_says(file, made) for file in files if file.name not in listed)
    except ArtifactError:
        return False


def _files(path: Path) -> list[str]:
    """Return the files of a folder, or the empty name of a file that is there."""
    if path.is_file():
        return [""]
    return sorted(str(file.relative_to(path)) for file in path.rglob("[!.]*") if file.is_file())


def _claimed(file: Path, claims: Claims) -> bool:
    try:
        said = provenance.of(file)
    except ArtifactError:
        return False
    claim = claims.get(said["path"]) if said else None
    return said is not None and claim is not None and all(said[key] == value for key, value in claim.items())


def _says(file: Path, made: Mapping[str, Any]) -> bool:
    said = provenance.of(file)
    same = said is not None and all(said.get(key) == value for key, value in made.items())
    return said is not None and same and store.holds(said, digests.of(file))


def _place(outs: Sequence[Path], made: Mapping[str, Any]) -> Path | None:
    results = atomic.results_above(outs[0])
    return results / ".finished" / digests.digest_json(made) if results else None


def _link(path: Path, name: Path) -> None:
    shutil.copytree(path, name, copy_function=os.link) if path.is_dir() else os.link(path, name)
