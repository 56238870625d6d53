"""Check artifacts before they are read: path, stage, parameters, code, and links to inputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts.addresses import address, owners
from mergemoe.artifacts.provenance import content_digest, read_provenance
from mergemoe.errors import ArtifactError, remade

Claims = Mapping[str, Mapping[str, Any]]


def claimed_path(path: str | Path, claims: Claims) -> str | None:
    """Return the path of a file's claim: its own, or that of the pair or the folder that it belongs to."""
    return next((one for one in owners(path) if one in claims), None)


def check_claim(path: str | Path, made: Mapping[str, Any] | None, claims: Claims) -> None:
    """Check that an artifact is what its path and params.yaml say it is.

    Raises:
        ArtifactError: if it is another artifact, or was made by another stage, with other parameters or by other code.
    """
    name = claimed_path(path, claims)
    if made is None or name is None:
        raise ArtifactError(f"{path} {'has no provenance' if made is None else 'belongs to no run in params.yaml'}")
    claim = claims[name]
    if made.get("path") != name:
        raise ArtifactError(f"{path} is a copy of {made.get('path')}, put in its place")
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
    """Check that the inputs of an artifact have not changed since.

    Args:
        path: path of the artifact.
        inputs: {path: content} that its provenance names.
        root: the folder that those paths start from.
        known: {path: content} of what was read before; it grows.

    Raises:
        ArtifactError: if an input is missing or has other content.
    """
    for name, digest in inputs.items():
        if not (root / name).exists():
            raise ArtifactError(f"{path} was made from {name}, which is missing")
        if name not in known:
            known[name] = content_digest(root / name)
        if known[name] != digest:
            raise ArtifactError(f"{path} was made from another {name} than there is now")


def check_input(path: str | Path, claims: Claims | None, known: dict[str, str]) -> None:
    """Check an artifact, or each of a folder, before a job reads it; files that no stage made are not checked.

    An input of it may be gone by now, such as a capture, for its size; one that is there must be unchanged.

    Raises:
        ArtifactError: if it is not what its path and the claims say, or was made from other inputs.
    """
    for file in _files(path):
        if (made := read_provenance(file)) is None:
            continue
        there = {name: said for name, said in made["inputs"].items() if address(name) == name and Path(name).exists()}
        try:
            if claims is not None:
                check_claim(file, made, claims)
            check_links(file, there, Path(), known)
        except ArtifactError as error:
            raise ArtifactError(f"{error}. {remade(file)}") from None


def is_current(path: str | Path, claims: Claims | None) -> bool:
    """Tell whether an artifact is there, and it and all that is left of its inputs are what the claims say."""
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
                todo += [
                    name for name in (read_provenance(file) or {"inputs": {}})["inputs"] if name.startswith("results/")
                ]
        except ArtifactError:
            return False
    return True


def _files(path: str | Path) -> list[Path]:
    return sorted(Path(path).rglob("[!.]*")) if Path(path).is_dir() else [Path(path)]
