"""A rule's dependencies besides its files: its parameters as one string, its code as one digest."""

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from stages.support.behaviour import behaviour

ROOT = Path(__file__).resolve().parent.parent.parent
UNCOUNTED = {"mergemoe/progress.py", "mergemoe/environment.py"}  # no number depends on them


def parameter_text(values: dict[str, Any]) -> str:
    """Return one sorted JSON string: Snakemake compares flat parameters as an unordered set of values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


@functools.cache
def code_digest(*modules: str) -> str:
    """Return the sha256 of the behaviour of the modules and of all that they import from the project.

    Files are compared by behaviour.py: a comment, a line break or the wording of a message changes nothing. What is
    loaded by name at run time, as a method of `solve` is, must be named here.
    """
    whole = hashlib.sha256()
    for path in sources(*modules):
        whole.update(f"{path.relative_to(ROOT)}\n{_behaviour(path)}\n".encode())
    return whole.hexdigest()


def sources(*modules: str) -> list[Path]:
    """Return the project's files that the modules import, directly or not, themselves included, but UNCOUNTED ones."""
    todo, seen = list(modules), set()
    while todo:
        name = todo.pop()
        for path in _files(name):
            if path not in seen and path.relative_to(ROOT).as_posix() not in UNCOUNTED:
                seen.add(path)
                todo += imports(path)
    return sorted(seen)


@functools.cache
def _files(name: str) -> list[Path]:
    """Return the project's files that importing a name runs: importing a.b runs a/__init__.py, too."""
    base = ROOT / name.replace(".", "/")
    own = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return own + (_files(name.rpartition(".")[0]) if "." in name else [])


@functools.cache
def imports(path: Path) -> list[str]:
    """Return the names that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def _behaviour(path: Path) -> str:
    return behaviour(path.read_text(encoding="utf-8"))


def files_below(folder: str | None) -> list[str]:
    """Return the files below a folder, sorted; none without a folder."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file()) if folder else []
