"""Read a JSON file of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError

LONGEST = 50_000_000  # bytes; the index and the headers of 10^12 parameters with 400 experts a layer have 40 MB
AGAIN = (
    "The copy is damaged or incomplete. Download the checkpoint again (with `mergemoe fetch` if it is a model of the "
    "hub)"
)


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of config.json or of an index.

    Raises:
        UserError: the file is missing, cannot be read, or is no JSON object.
    """
    try:
        if not path.is_file():
            raise UserError(
                f"{path.parent}: there is no {path.name}. `model.<name>.path` must name a checkpoint folder. If it is "
                "the id of a model of the hub, add `revision` with a full commit hash"
            )
        if (size := path.stat().st_size) > LONGEST:
            raise UserError(f"{path} has {size:,} bytes; at most {LONGEST:,} are read. {AGAIN}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Look at its name, its permissions and its disk") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}). {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object. {AGAIN}")
    return content
