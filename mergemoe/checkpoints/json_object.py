"""Read a JSON file of a checkpoint."""

import json
import math
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
        wrong = _not_finite(content)  # here, because what json can read may nest too deeply for it
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Look at its name, its permissions and its disk") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}). {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object. {AGAIN}")
    if wrong:
        raise UserError(f"{path}: {wrong}, which is no number to compute with. The file is damaged or was edited")
    return content


def _not_finite(value: Any, key: str = "") -> str | None:
    """Return the first key whose value is NaN or infinite; a bound in a list may be infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key} is {value}"
    if isinstance(value, dict):
        return next(filter(None, (_not_finite(part, str(name)) for name, part in value.items())), None)
    if isinstance(value, list):
        parts = [part for part in value if not isinstance(part, float) or math.isnan(part)]
        return next(filter(None, (_not_finite(part, key) for part in parts)), None)
    return None
