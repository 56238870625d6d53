"""What an artifact says of its making, and whether that agrees with the disk and with what params.yaml asks for.

Provenance is read from a file's head, without its payload. A claim is what the provenance of an artifact must say:
{path: {stage, params, code}} for every artifact of the runs, made by stages/claims.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe import errors, payloads, store
from mergemoe.errors import ArtifactError

Claims = Mapping[str, Mapping[str, Any]]


def address(path: str | Path) -> str:
    """Return the path of an artifact from its folder `results` on, the same on every machine; else its bare name."""
    parts = Path(path).parts
    return "/".join(parts[parts.index("results") :] if "results" in parts else parts[-1:])


def of(path: str | Path) -> dict[str, Any] | None:
    """Return the provenance of an artifact; None for a file that is none of ours.

    Raises:
        ArtifactError: where the provenance was changed after it was written, or its file cannot be read.
    """
    path = Path(path)
    if "results" not in path.parts or path.suffix not in _READERS:
        return None
    try:
        made = _READERS[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise errors.damaged(path, f"cannot be read as an artifact ({error})") from error
    if made is not None and not store.holds(made, made.get("payload", "")):
        raise errors.damaged(path, "does not hold what was written (its provenance was changed)")
    return made


def _of_json(path: Path) -> dict[str, Any] | None:
    whole = json.loads(path.read_text())
    return whole.get("provenance") if isinstance(whole, dict) else None


def _of_tensors(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    made = head.get("__metadata__", {}).get(store.KEY)
    return json.loads(made) if made else None


def _of_activations(path: Path) -> dict[str, Any] | None:
    import h5py  # here, so that a stage that reads no activations needs it not

    with h5py.File(path) as file:
        return json.loads(str(file.attrs[store.KEY]))


_READERS = {".json": _of_json, ".safetensors": _of_tensors, ".h5": _of_activations}


def content(path: str | Path) -> str:
    """Return the digest of what a file says: an artifact's payload, its provenance left aside; else its sha256.

    So an artifact that was made again by other code and says the same counts as the same. Of a folder it is the digest
    of its files' contents and names, or what its provenance.json lists.
    """
    path = Path(path)
    if not path.is_dir():
        made = of(path)
        return made["payload"] if made else payloads.sha256(path)
    if (path / "provenance.json").is_file():
        return content(path / "provenance.json")
    files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
    return payloads.digest_json({file.relative_to(path).as_posix(): content(file) for file in files})


def unit(path: str | Path, claims: Claims) -> str | None:
    """Return the path that a file's claim goes by: its own, or that of the pair or the folder that it is a part of."""
    path = Path(address(path))
    candidates = [path, path.with_suffix(".safetensors"), *path.parents]
    return next((str(one) for one in candidates if str(one) in claims), None)


def check_claim(path: str | Path, made: Mapping[str, Any] | None, claims: Claims) -> None:
    """Check that an artifact is what its path and params.yaml say it is.

    Raises:
        ArtifactError: where it is another one, or was made by another stage, with other parameters or by other code.
    """
    name = unit(path, claims)
    if made is None or name is None:
        raise ArtifactError(f"{path} {'carries no provenance' if made is None else 'is of no run in params.yaml'}")
    claim = claims[name]
    if made.get("path") != name:
        raise ArtifactError(f"{path} says that it is {made.get('path')}: it was put here in the place of the right one")
    if made["stage"] != claim["stage"]:
        raise ArtifactError(f"{path} was made by the stage {made['stage']}, not {claim['stage']}")
    if made["params"] != claim["params"]:
        raise ArtifactError(f"{path} was made with {_differences(made['params'], claim['params'])}")
    if made["code"] != claim["code"]:
        raise ArtifactError(f"{path} was made by other code of the stage {made['stage']} than there is now")


def _differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in sorted(made.keys() | wanted.keys()) if made.get(key) != wanted.get(key)]
    return "; ".join(
        f"{key}: {json.dumps(made.get(key))}, and params.yaml asks for {json.dumps(wanted.get(key))}" for key in keys
    )


def check_links(path: str | Path, inputs: Mapping[str, str], root: Path, known: dict[str, str]) -> None:
    """Check that what an artifact was made from is what lies there now.

    Args:
        path: the artifact's.
        inputs: {path: content} that its provenance names.
        root: the folder that those paths start from.
        known: {path: content} of what was read already; it grows.

    Raises:
        ArtifactError: where an input is missing or says something else.
    """
    for name, digest in inputs.items():
        if not (root / name).exists():
            raise ArtifactError(f"{path} was made from {name}, which is not there")
        if name not in known:
            known[name] = content(root / name)
        if known[name] != digest:
            raise ArtifactError(f"{path} was made from another {name} than there is now")


def check_input(path: str | Path, claims: Claims | None, known: dict[str, str]) -> None:
    """Check an artifact before a job reads it, or each of a folder; what is none of ours is left alone.

    What it was made from may be gone by now, a capture for its size; what is there must be the same.

    Raises:
        ArtifactError: where it is not what its path and the claims say, or was made from something else.
    """
    for file in _files(path):
        if (made := of(file)) is None:
            continue
        there = {name: said for name, said in made["inputs"].items() if address(name) == name and Path(name).exists()}
        try:
            if claims is not None:
                check_claim(file, made, claims)
            check_links(file, there, Path(), known)
        except ArtifactError as error:
            raise ArtifactError(f"{error}. Delete {file} and run `snakemake` again: it will be made anew.") from None


def is_current(path: str | Path, claims: Claims | None) -> bool:
    """Tell whether an artifact is there and, with all that is left of what it was made from, what the claims say."""
    if not Path(path).exists():
        return False
    known: dict[str, str] = {}
    todo, seen = [str(path)], set()
    while todo:
        if (one := todo.pop()) in seen or not Path(one).exists():
            continue
        seen.add(one)
        try:
            check_input(one, claims, known)
            for file in _files(one):
                todo += [name for name in (of(file) or {"inputs": {}})["inputs"] if name.startswith("results/")]
        except ArtifactError:
            return False
    return True


def _files(path: str | Path) -> list[Path]:
    return sorted(Path(path).rglob("[!.]*")) if Path(path).is_dir() else [Path(path)]
