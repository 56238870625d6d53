"""What a rule depends on besides its files: its parameters as one string, its code as one digest."""

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def cfg(values: dict[str, Any]) -> str:
    """Return one sorted JSON string: Snakemake compares flat parameters as an unordered set of values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


@functools.cache
def code(*modules: str) -> str:
    """Return the sha256 over what the modules and all they import from the project do.

    Syntax trees are compared, without docstrings: a comment or a line break changes nothing. What is loaded by
    name at run time, as a method of `solve` is, must be named here.
    """
    whole = hashlib.sha256()
    for path in sources(*modules):
        whole.update(f"{path.relative_to(ROOT)}\n{_tree(path)}\n".encode())
    return whole.hexdigest()


def sources(*modules: str) -> list[Path]:
    """Return the project's files that the modules import, directly or not, themselves included."""
    todo, seen = list(modules), set()
    while todo:
        name = todo.pop()
        for path in _files(name):
            if path not in seen:
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
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _tree(path: Path) -> str:
    """Return what a file does as text; its imports are the same without docstrings."""
    tree = _parsed(path)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def files_below(folder: str | None) -> list[str]:
    """Return the files below a folder, sorted; none without a folder."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file()) if folder else []
