"""Write and read the record of a fetch, and check a hub model's files against it.

The record is kept in git: {"model": id, "revision": commit, "files": {name: {"size": bytes, "sha256": digest}},
"digest": that of the rest}.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, digests
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.errors import UserError


def write_fetch_record(model: str, revision: str, files: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write {file: its size and sha256} of a commit of a model, unless the same is there; return the record's path."""
    path, content = hub_cache.fetch_record_path(model, revision), {"model": model, "revision": revision, "files": files}
    text = json.dumps({**content, "digest": digests.digest_json(content)}, sort_keys=True, indent=1) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        with atomic.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def read_fetch_record(model: str, revision: str) -> dict[str, Any]:
    """Return {file: its size and sha256} from the record of a commit; an empty dictionary if there is none.

    Raises:
        UserError: the file is not such a record, or another one's.
    """
    path = hub_cache.fetch_record_path(model, revision)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        old = "digest" not in content  # a record of an older version
        if not old and content.pop("digest") != digests.digest_json(content):
            raise ValueError("it does not hold what was written: its digest differs")
        _check_shape(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read now ({error}). Look at its permissions and its disk") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(model, revision, path, f"is damaged ({error!r})") from None
    if (content["model"], content["revision"]) != (model, revision):
        raise _damaged(model, revision, path, f"is the record of {content['model']} at {content['revision']}")
    return content["files"]


def _damaged(model: str, revision: str, path: Path, fact: str) -> UserError:
    return UserError(
        f"{path} {fact}. Restore it with git, or delete it and run `{hub_cache.fetch_command(model, revision)}`"
    )


def _check_shape(content: dict[str, Any]) -> None:
    if content.keys() != {"model", "revision", "files"} or not content["files"]:
        raise ValueError(f"it has the keys {', '.join(content)}")
    for name, file in content["files"].items():
        if not all(map(hub_cache.is_plain_name, name.split("/"))) or file.keys() != {"size", "sha256"}:
            raise ValueError(f"{name!r} is no file with a size and a sha256")
        if type(file["size"]) is not int or file["size"] < 0 or not hub_cache.SHA256.fullmatch(file["sha256"]):
            raise ValueError(f"{name} has the size {file['size']!r} and the sha256 {file['sha256']!r}")


def _is_read(name: str) -> bool:
    """Tell whether a model's outputs depend on a file; license and card come for who gets the compressed model."""
    return name.endswith(".safetensors") or model_folder.is_beside_weights(name)


def check_fetch_record(model: str, revision: str | None, digests: Mapping[str, str]) -> None:
    """Check {file: sha256} of a checkpoint against the record of its fetch, if there is one.

    Raises:
        UserError: a file differs, or only one of the two names it, or the record is damaged.
    """
    if revision is None or not (recorded := read_fetch_record(model, revision)):
        return
    for name in sorted({name for name in recorded if _is_read(name)} | digests.keys()):
        found, said = digests.get(name, "missing"), recorded.get(name, {}).get("sha256", "not named")
        if found != said:
            file = hub_cache.snapshot_folder(model, revision) / name
            path = hub_cache.fetch_record_path(model, revision)
            raise UserError(
                f"{file}: its sha256 is {found}, but {path} states {said}. Delete {file.resolve()} and run "
                f"`{hub_cache.fetch_command(model, revision)}`"
            )
