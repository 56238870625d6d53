"""Read the provenance of an artifact: which stage made it, with what parameters, inputs and code.

Provenance is read from a file's head, without its payload. verify.py compares it with the disk, and with the claim of
the artifact: the stage, parameters and code that its provenance must have (stages/support/expected.py).
"""

import json
from pathlib import Path
from typing import Any

from mergemoe import errors
from mergemoe.artifacts import digests, store
from mergemoe.artifacts.formats.hdf5_attributes import read_attribute
from mergemoe.artifacts.formats.safetensors_header import read_header
from mergemoe.artifacts.reading import reading


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """Return the provenance of an artifact; None for a file that no stage made.

    Raises:
        ArtifactError: if it was changed after it was written, is another file's, or cannot be read.
    """
    path = Path(path)
    if "results" not in path.parts or path.suffix not in _READERS:
        return None
    with reading(path):
        made = _READERS[path.suffix](path)
    if made is not None and not store.matches_seal(made, made.get("payload", "")):
        raise errors.damaged_artifact(path, "does not hold what was written (its provenance was changed)")
    if made is not None:
        store.check_place(path, made)
    return made


def _of_json(path: Path) -> dict[str, Any] | None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    return whole.get("provenance") if isinstance(whole, dict) else None


def _of_tensors(path: Path) -> dict[str, Any] | None:
    made = read_header(path).metadata.get(digests.PROVENANCE)
    return json.loads(made) if made else None


def _of_activations(path: Path) -> dict[str, Any] | None:
    import h5py  # here, because only stages that read activations need it

    with h5py.File(path, locking=False) as file:
        return json.loads(read_attribute(file, digests.PROVENANCE))


_READERS = {".json": _of_json, ".safetensors": _of_tensors, ".h5": _of_activations}


def content_digest(path: str | Path) -> str:
    """Return the digest of an artifact's payload, without its provenance; of any other file its sha256.

    So an artifact that other code rebuilt with the same payload counts as unchanged. For a folder it is the digest of
    its files' names and contents, or of its provenance.json, which lists them.
    """
    path = Path(path)
    if not path.is_dir():
        made = read_provenance(path)
        return made["payload"] if made else digests.sha256(path)
    if (path / "provenance.json").is_file():
        return content_digest(path / "provenance.json")
    files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
    return digests.digest_json({file.relative_to(path).as_posix(): content_digest(file) for file in files})
