"""Compare dvc.lock with the bytes on disk, without DVC and without its cache of states.

DVC trusts a file's size and time, so it can miss a changed byte; this reads every byte. `dvc status` with an empty
`DVC_SITE_CACHE_DIR` reads every byte, too, but of an output that DVC's cache lacks it only says "not in cache", and it
gives no hash of a single file, which `restore` needs. The hashes are DVC's: md5 of a file; of a folder, md5 of the JSON
list of its files with their md5, sorted by their paths as text.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from mergemoe.errors import UserError
from mergemoe.workflow.ledger import kept_files

REWRITTEN = "; or delete it, and `mergemoe record` writes it"
IGNORED = {".snakemake_timestamp"}  # Snakemake's mark of a folder; .dvcignore has it, too


class Entry(NamedTuple):
    """A path in the lock."""

    stage: str
    kind: str  # deps or outs
    path: str
    md5: str


def read_lock(root: Path) -> dict[str, Any]:
    """Return {stage: its record} of the lock.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        raise UserError(f"{path} is missing: nothing was recorded yet. Run `mergemoe record` after a finished run")
    return dict(kept_files.read_kept(root, "dvc.lock", kept_files.Lock, REWRITTEN)["stages"])


def forget_stages(root: Path) -> None:
    """Delete from the lock what dvc.yaml has no stage for, which DVC keeps: an optional stage that no run needs now."""
    path = root / "dvc.lock"
    if not path.is_file():
        return
    editor = YAML()  # it keeps the rest as it is
    whole, known = editor.load(path), declared_stages(root)
    gone = [name for name in whole["stages"] if name.partition("@")[0] not in known]
    for name in gone:
        del whole["stages"][name]
    if gone:
        editor.dump(whole, path)


def declared_stages(root: Path) -> dict[str, Any]:
    """Return {stage: its entry} of dvc.yaml.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    return kept_files.read_kept(root, "dvc.yaml", kept_files.Declared, REWRITTEN)["stages"]


def lock_entries(lock: dict[str, Any], kind: str) -> Iterator[Entry]:
    """Yield the lock's outputs (`outs`) or what they depend on (`deps`), in its order."""
    for stage, record in lock.items():
        for one in record.get(kind, []):
            yield Entry(stage, kind, one["path"], one["md5"])


def locked_outs(root: Path) -> list[Entry]:
    """Return the outputs that a project's dvc.lock has."""
    return list(lock_entries(read_lock(root), "outs"))


def dvc_digest(path: Path) -> str | None:
    """Return DVC's hash of a file or folder; None if there is nothing."""
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and file.name not in IGNORED]
        names = sorted(file.relative_to(path).as_posix() for file in found)
        listed = [{"md5": _md5(path / name), "relpath": name} for name in names]
        return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    return _md5(path) if path.is_file() else None


def is_cached(cache: Path, md5: str) -> bool:
    """Tell whether DVC's cache has an output, with every file of a folder, whose list must be whole."""
    path = _object(cache, md5)
    if not path.is_file() or not md5.endswith(".dir"):
        return path.is_file()
    return all(is_cached(cache, one) for one in _members(path))


def lacks_whole_list(cache: Path, md5: str) -> bool:
    """Tell whether DVC's cache has a damaged list of the files of a folder."""
    path = _object(cache, md5)
    return md5.endswith(".dir") and path.is_file() and not _is_whole(path, md5)


def damaged_objects(cache: Path, md5: str) -> list[Path]:
    """Return the files of DVC's cache, of those that an output needs, that lack the hash that names them."""
    path = _object(cache, md5)
    if not path.is_file():
        return []
    if not _is_whole(path, md5):
        return [path]
    members = _members(path) if md5.endswith(".dir") else []
    return [damaged for one in members for damaged in damaged_objects(cache, one)]


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _is_whole(path: Path, md5: str) -> bool:
    return _md5(path) == md5.removesuffix(".dir")


def _members(path: Path) -> list[str]:
    """Return the hashes of a folder's files, from the list of them in DVC's cache."""
    return [file["md5"] for file in json.loads(path.read_text(encoding="utf-8"))]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
