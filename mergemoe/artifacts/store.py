"""The files between stages: written whole or not at all, with their provenance inside, checked when read.

Provenance is {stage, params, inputs: {path: sha256}, code, payload, seal}. `payload` is the digest of the file's
content without the provenance, `seal` that of the provenance; both are checked on every read, so a flipped bit or
a truncated file is found before anything is computed from it. Nothing inside a file depends on time, host or version.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergemoe.artifacts.atomic import atomic
from mergemoe.artifacts.digests import canonical, digest_json, digest_tensors, sha256
from mergemoe.errors import ArtifactError, damaged_artifact

if TYPE_CHECKING:
    from torch import Tensor

KEY = "mergemoe"  # the one metadata entry of a safetensors file; with two their order would be random


def write_json(path: str | Path, payload: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write a JSON artifact; `provenance` lacks only the digest of the payload."""
    whole = {**payload, "provenance": sealed(provenance, digest_json(payload))}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n")


def sealed(provenance: Mapping[str, Any], payload: str) -> dict[str, Any]:
    """Return the provenance with the digest of the payload and that of itself."""
    made = {**provenance, "payload": payload}
    return {**made, "seal": digest_json(made)}


def matches_seal(provenance: Mapping[str, Any], payload: str) -> bool:
    """Tell whether a sealed provenance is whole and belongs to a payload of this digest."""
    return sealed({k: v for k, v in provenance.items() if k not in {"payload", "seal"}}, payload) == provenance


def read_json(path: str | Path, layer: int | None = None) -> Any:
    """Read a JSON artifact and check its digests, and that it belongs to the wanted layer.

    The caller annotates what it reads: `layout: Layout = read_json(path)`.

    Raises:
        ArtifactError: if the file is missing, not JSON, not what its writer wrote, or another layer's.
    """
    try:
        whole = json.loads(Path(path).read_text())
        payload = {key: value for key, value in whole.items() if key != "provenance"}
        provenance = dict(whole["provenance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_artifact(path, f"cannot be read as an artifact ({error})") from error
    if not matches_seal(provenance, digest_json(payload)):
        raise damaged_artifact(path, "does not hold what was written (its digest differs)")
    if layer is not None and payload.get("layer") != layer:
        raise damaged_artifact(path, f"belongs to layer {payload.get('layer')}, not {layer}")
    return whole


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], provenance: Mapping[str, Any]) -> None:
    """Write a safetensors artifact with its provenance as the one metadata entry."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {KEY: canonical(sealed(provenance, digest_tensors(tensors)))}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_tensors(path: str | Path) -> dict[str, "Tensor"]:
    """Read a safetensors artifact and check its digest.

    Raises:
        ArtifactError: if the file is truncated, or not what its writer wrote.
    """
    from safetensors import SafetensorError, safe_open

    from mergemoe.artifacts import digests

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            provenance = json.loads((file.metadata() or {})[KEY])
        whole = matches_seal(provenance, digests.digest_tensor_file(path))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged_artifact(path, f"cannot be read as an artifact ({error})") from error
    if not whole:
        raise damaged_artifact(path, "does not hold what was written (its digest differs)")
    return tensors


def check_files(folder: str | Path, digests: Mapping[str, str], original: bool = False) -> None:
    """Check that a folder's files are those whose digests were recorded.

    Args:
        folder: folder of the files.
        digests: {name: sha256}.
        original: whether it is the user's own checkpoint, which no job can make again.

    Raises:
        ArtifactError: if one is missing or differs.
    """
    for name, digest in digests.items():
        path = Path(folder, name)
        fact = None if path.is_file() else "is missing"
        if not fact and sha256(path) != digest:
            fact = "is not the file that was recorded (its sha256 differs)"
        if fact and original:
            raise ArtifactError(
                f"{path} {fact}. The checkpoint was changed or damaged after the job `layout` read it. Put the old "
                "file back; or, if you want the change, run `snakemake` again, which then begins with `layout`"
            )
        if fact:
            raise damaged_artifact(path, fact)
