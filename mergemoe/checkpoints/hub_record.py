"""Read a fetch record and check a hub model's files against it.

The record is kept in git: {"model": id, "revision": commit, "files": {name: {"size": bytes, "sha256": digest}}}.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints import hub_cache
from mergemoe.errors import UserError


def read_fetch_record(path: Path) -> dict[str, Any]:
    """Return {file: its size and sha256} from a record; an empty dictionary if the record does not exist.

    Raises:
        UserError: the file is not such a record.
    """
    try:
        return json.loads(path.read_text())["files"] if path.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Restore it with git, or delete it and fetch again") from None


def check_fetch_record(model: str, revision: str | None, digests: Mapping[str, str]) -> None:
    """Check {file: sha256} of a checkpoint against the record of its fetch, if there is one.

    Raises:
        UserError: a file differs, or only one of the two names it.
    """
    if revision is None or not (recorded := read_fetch_record(path := hub_cache.fetch_record_path(model, revision))):
        return
    for name in sorted(recorded.keys() | digests.keys()):
        found, said = digests.get(name, "missing"), recorded.get(name, {}).get("sha256", "not named")
        if found != said:
            file = hub_cache.snapshot_folder(model, revision) / name
            raise UserError(
                f"{file}: its sha256 is {found}, but {path} states {said}. Delete {file.resolve()} and run "
                f"`{hub_cache.fetch_command(model, revision)}`"
            )
