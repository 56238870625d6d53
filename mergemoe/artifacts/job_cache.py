"""Keep what jobs have finished, and keep jobs of ended runs from writing.

Snakemake deletes the outputs of a job before it starts and after it failed, and a cluster may run a job twice. The
accidents that can follow, and what covers each:

* A run is killed. The next one deletes the outputs of every job that Snakemake had not yet marked finished, and starts
  them again. A finished job also has hard links to its outputs below results/.finished, which take no disk of their
  own; its second copy puts them back (restore_outputs) and ends.
* One job of a SLURM group fails. Snakemake deletes the outputs of the whole group, finished ones too. As above.
* SLURM believes that a node is dead, and starts its jobs a second time while the first copies still run. Each file is
  renamed into place whole (atomic.py). If the same content is there already, the file stays, with its date, because
  others may be reading it (run_guard.UNCHANGED), and the job ends with an error, so that Snakemake does not touch it.
* A job outlives its run, which ended or was replaced. The Snakefile writes the expected provenance of each run to a
  file that it deletes at the end (stages/support/runs.py). A job without that file neither deletes nor writes.
* A job could not be submitted. Snakemake, told to keep incomplete files, keeps outputs of an earlier run and notes them
  as new. runs.end_failed_run deletes those whose provenance is not the expected one.
* A job is killed while it writes. Its temporary files lie in results/.tmp, and the next run sweeps them.

Each run first deletes kept outputs that no job of its params.yaml will ask for (delete_unclaimed). A run that ends well
with everything made deletes all (delete_all). On a file system without hard links nothing is kept, and the log says so.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, digests, provenance, store
from mergemoe.artifacts.run_guard import UNCHANGED
from mergemoe.artifacts.verify import Claims
from mergemoe.errors import ArtifactError, UserError

FILE_LIST = "listed.json"  # of a place: {output: its files}; a folder counts only with all of them


def run_once(
    work: Callable[[], Path | None], outs: Sequence[Path], made: Mapping[str, Any], complete: bool, guarded: bool
) -> None:
    """Do a job's work, unless another copy of the job has finished it.

    Args:
        work: writes the outputs; it may return a scratch folder, which is deleted when nothing can be lost.
        outs: its outputs.
        made: their provenance without payload and seal, which are added on writing.
        complete: whether the provenance names all that the job reads; if not, finished work cannot be recognized.
        guarded: whether the job belongs to a run of Snakemake.

    Raises:
        UserError: if another copy finished while this one worked.
    """
    if complete and (_all_whole(outs, made) or restore_outputs(outs, made)):
        print(f"{outs[0]}: another copy of this job has finished it, and it holds", file=sys.stderr)
        return
    scratch = None
    try:
        scratch, overtaken = work(), not UNCHANGED.isdisjoint(outs)
    except Exception:
        overtaken = complete and _all_whole(outs, made)
        if not overtaken:
            raise
    in_results = atomic.results_above(outs[0]) is not None  # else it is no output of Snakemake's
    # An error here stops Snakemake from touching files that others may have read.
    if overtaken and guarded and in_results:
        raise UserError(f"{outs[0]} is whole: another copy of this job has finished it meanwhile")
    if complete:
        keep_outputs(outs, made)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)  # another copy may write there


def keep_outputs(outs: Sequence[Path], made: Mapping[str, Any]) -> None:
    """Hard-link a job's outputs into results/.finished, replacing an older or damaged copy."""
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
            store.write_json(folder / FILE_LIST, {"files": listed}, made)
    except OSError as error:  # a file system without hard links, and a copy would take disk
        print(f"{place}: {error}. The outputs of this job are lost if another copy of it fails", file=sys.stderr)


def restore_outputs(outs: Sequence[Path], made: Mapping[str, Any]) -> bool:
    """Put the outputs of another copy of a job in place, and tell whether there are any; damaged ones do not count."""
    place = _place(outs, made)
    if place is None or not (place / FILE_LIST).is_file():
        return False
    try:
        listed = store.read_json(place / FILE_LIST)["files"]
    except ArtifactError:
        return False
    if any(_files(place / path.name) != listed[path.name] or not is_whole(place / path.name, made) for path in outs):
        return False
    for path in outs:
        with atomic.atomic(path) as temporary:
            _link(place / path.name, temporary)
    return True


def delete_unclaimed(results: str | Path, claims: Claims) -> None:
    """Delete kept outputs whose provenance matches no expected artifact; they can be large."""
    for place in Path(results, ".finished").glob("*"):  # also what a file system leaves there, such as .nfs0001
        if place.is_symlink() or not any(_claimed(file, claims) for file in place.rglob("[!.]*")):
            atomic.remove(place)


def delete_all(results: str | Path) -> None:
    """Delete all kept outputs after a run that made everything, and temporary files of killed jobs of any host."""
    for name in (".finished", ".tmp"):
        shutil.rmtree(Path(results, name), ignore_errors=True)


def _all_whole(outs: Sequence[Path], made: Mapping[str, Any]) -> bool:
    return all(is_whole(path, made) for path in outs)


def is_whole(path: Path, made: Mapping[str, Any]) -> bool:
    """Tell whether a file or a folder is there, has exactly this provenance, and holds what was written.

    Args:
        path: path of an artifact.
        made: its provenance without payload and seal (and the layer, in a folder's file), added on writing.
    """
    files = _files(path)
    try:
        listed = store.read_json(path / "provenance.json")["files"] if (path / "provenance.json").is_file() else {}
        store.check_files(path, listed)
        return bool(files) and all(_has_provenance(path / name, made) for name in files if name not in listed)
    except ArtifactError:
        return False


def _files(path: Path) -> list[str]:
    """Return the files of a folder, or the empty name of a file that is there."""
    if path.is_file():
        return [""]
    return sorted(str(file.relative_to(path)) for file in path.rglob("[!.]*") if file.is_file())


def _claimed(file: Path, claims: Claims) -> bool:
    try:
        found = provenance.read_provenance(file)
    except ArtifactError:
        return False
    claim = claims.get(found["path"]) if found else None
    return found is not None and claim is not None and all(found[key] == value for key, value in claim.items())


def _has_provenance(file: Path, made: Mapping[str, Any]) -> bool:
    found = provenance.read_provenance(file)
    same = found is not None and all(found.get(key) == value for key, value in made.items())
    return found is not None and same and store.matches_seal(found, digests.digest_artifact(file))


def _place(outs: Sequence[Path], made: Mapping[str, Any]) -> Path | None:
    results = atomic.results_above(outs[0])
    return results / ".finished" / digests.digest_json(made) if results else None


def _link(path: Path, name: Path) -> None:
    shutil.copytree(path, name, copy_function=os.link) if path.is_dir() else os.link(path, name)
