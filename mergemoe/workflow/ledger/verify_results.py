"""Verify every file below results/ against its path and params.yaml, back to checkpoint and text.

An artifact is valid if its payload has the digest that it carries, its provenance is the expected one (provenance.py),
and its inputs are the files that are there now. A file without provenance of its own, such as the weights of a
checkpoint or a page, is listed with its sha256 in the provenance.json of the job that wrote it, and in no other.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mergemoe import errors
from mergemoe.artifacts import digests, provenance, reading, store, verify
from mergemoe.artifacts.paths import CARDS, ERRORS, METRICS, QUALITY, REPORTED, RESULTS
from mergemoe.artifacts.stages import STAGES
from mergemoe.artifacts.verify import Claims
from mergemoe.checkpoints import model_folder
from mergemoe.errors import ArtifactError
from mergemoe.progress import track

LISTING = ("convert", "assemble", "report")  # the stages that write files without provenance
BY_REPORT = (METRICS, QUALITY, ERRORS, os.path.dirname(REPORTED))


class Fault(NamedTuple):
    """An artifact that fails a check, or is missing."""

    stage: str  # of the claim; empty for a file that no run makes
    path: str  # relative to the project
    fact: str


def check_results(root: Path, claims: Claims, kept_out: Collection[str] = ()) -> list[Fault]:
    """Return every fault of the artifacts below `root`/results, missing ones first.

    Args:
        root: the project's folder.
        claims: the expected provenance of every artifact.
        kept_out: folders that may be missing, because they are kept out of pushes.
    """
    found = result_files(root)
    listed, faults = _listed(root, found, claims)
    known: dict[str, str] = {}
    wanted = [path for output, claim in claims.items() for path in STAGES[claim["stage"]].files(output)]
    absent = [path for path in wanted if not (root / path).exists() and not is_below(path, kept_out)]
    absent += [path for path in listed if not (root / path).is_file()]
    faults += [_fault(path, _absence(root, path), claims, listed) for path in dict.fromkeys(absent)]
    for name, fact in reading.links_below(root / RESULTS).items():
        path = os.path.relpath(name, root)
        faults.append(_fault(path, fact.replace(f"{root}/", ""), claims, listed))
    for path in track(found, "artifacts checked"):
        try:
            if path in listed:
                if digests.sha256(root / path) != listed[path].sha256:
                    raise ArtifactError(f"{path} does not hold what was written (its sha256 differs)")
            else:
                with reading.reading(root / path):
                    _check(path, root, claims, known, kept_out)
        except ArtifactError as error:
            faults.append(_fault(path, str(error).replace(f"{root}/", ""), claims, listed))
    return faults


def _absence(root: Path, path: str) -> str:
    file = root / path
    return f"{path} is {reading.kind_of(file.stat().st_mode)}, not a file" if file.exists() else f"{path} is missing"


def result_files(root: Path) -> list[str]:
    """Return the files below `root`/results, sorted; temporaries and Snakemake's own marks have hidden names."""
    paths = (path.relative_to(root) for path in (root / "results").rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def is_below(path: str, folders: Collection[str]) -> bool:
    """Tell whether a path is one of `folders`, or lies in one."""
    return any(Path(path).is_relative_to(folder) for folder in folders)


class _Listed(NamedTuple):
    by: str  # a provenance.json
    sha256: str


def _listed(root: Path, found: Sequence[str], claims: Claims) -> tuple[dict[str, _Listed], list[Fault]]:
    """Return {file: its entry} of the files that jobs list in their provenance.json, and faults of those that do not.

    A job lists what it wrote, and no artifact that has provenance of its own.
    """
    listed: dict[str, _Listed] = {}
    faults: list[Fault] = []
    for path in found:
        folder = os.path.dirname(path)
        claim = claims.get(path if path == REPORTED else folder)
        if Path(path).name != "provenance.json" or claim is None or claim["stage"] not in LISTING:
            continue  # its own check says what it is
        try:
            with reading.reading(root / path):
                names = {os.path.normpath(f"{folder}/{name}"): str(digest) for name, digest in _files(root / path)}
        except ArtifactError:
            continue
        own = (*BY_REPORT, CARDS) if path == REPORTED else (folder,)
        strange = [name for name in names if not is_below(name, own) or Path(name).name == "provenance.json"]
        faults += [Fault(claim["stage"], path, f"{path} lists {name}, which is no file of its job") for name in strange]
        listed |= {name: _Listed(path, digest) for name, digest in names.items() if name not in strange}
    return listed, faults


def _files(path: Path) -> Iterable[tuple[str, str]]:
    return dict(store.read_json(path).get("files", {})).items()


def _check(path: str, root: Path, claims: Claims, known: dict[str, str], kept_out: Collection[str]) -> None:
    file = root / path
    made = provenance.read_provenance(file)
    verify.check_claim(path, made, claims)
    assert made is not None  # a claim is of an artifact
    inputs = {name: digest for name, digest in made["inputs"].items() if not is_below(name, kept_out)}
    verify.check_links(path, inputs, root, known)
    layer = int(digits[1]) if (digits := re.fullmatch(r"layer_(\d+)", file.stem)) else None
    if file.suffix == ".json":
        whole = store.read_json(file, layer)
        if made["stage"] == "layout":
            folder = root / model_folder.locate_checkpoint(whole["path"], whole.get("revision"))
            store.check_files(folder, whole["files"], original=True)
    elif not store.matches_seal(made, digests.digest_artifact(file)):
        raise errors.damaged_artifact(path, "does not hold what was written (its digest differs)")
    elif layer is not None and made.get("layer", layer) != layer:
        raise errors.damaged_artifact(path, f"belongs to layer {made['layer']}, not {layer}")


def _fault(path: str, fact: str, claims: Claims, listed: Mapping[str, _Listed]) -> Fault:
    name = verify.claimed_path(listed[path].by if path in listed else path, claims)
    return Fault(claims[name]["stage"] if name else "", path, fact)
