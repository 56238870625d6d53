"""What a fetch wrote down of a model of the hub, which every later reading of its files must find again.

{"model": id, "revision": commit, "files": {name: {"size": bytes, "sha256": digest}}}, kept in git.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints import hub_cache
from mergemoe.errors import UserError


def read_fetch_record(path: Path) -> dict[str, Any]:
    """Return {file: its size and sha256} of a record; nothing where there is none.

    Raises:
        UserError: where it is no such record.
    """
    try:
        return json.loads(path.read_text())["files"] if path.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): restore it with git, or delete it and fetch again") from None


def check_fetch_record(model: str, revision: str | None, digests: Mapping[str, str]) -> None:
    """Check {file: sha256} of a checkpoint against the record of its fetch, where there is one.

    Raises:
        UserError: where a file differs, or only one of the two has it.
    """
    if revision is None or not (recorded := read_fetch_record(path := hub_cache.fetch_record_path(model, revision))):
        return
    for name in sorted(recorded.keys() | digests.keys()):
        found, said = digests.get(name, "missing"), recorded.get(name, {}).get("sha256", "not named")
        if found != said:
            file = hub_cache.snapshot_folder(model, revision) / name
            raise UserError(
                f"{file} (sha256: {found}) is not what {path} says (sha256: {said}). Delete {file.resolve()} and run "
                f"`{hub_cache.fetch_command(model, revision)}`"
            )
