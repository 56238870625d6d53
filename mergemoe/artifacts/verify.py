"""Check artifacts before they are read: path, stage, parameters, code, and links to inputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts.provenance import address, content, of
from mergemoe.errors import ArtifactError

Claims = Mapping[str, Mapping[str, Any]]


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
