"""The files between stages: written whole or not at all, with their provenance inside, checked when read.

Provenance is {stage, params, inputs: {path: sha256}, code, payload, seal}. `payload` is the digest of the file's
content without the provenance, `seal` that of the provenance; both are checked on every read, so a flipped bit or
a truncated file is found before anything is computed from it. Nothing inside a file depends on time, host or version.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergemoe.artifacts.addresses import may_be
from mergemoe.artifacts.atomic import atomic
from mergemoe.artifacts.digests import (
    PROVENANCE,
    canonical,
    digest_json,
    digest_tensor_file,
    digest_tensors,
    sha256,
    sha256_once,
)
from mergemoe.artifacts.formats.safetensors_header import read_header
from mergemoe.artifacts.reading import reading, refuse_no_file
from mergemoe.errors import ArtifactError, UserError, damaged_artifact

if TYPE_CHECKING:
    from torch import Tensor


def write_json(path: str | Path, payload: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write a JSON artifact; `provenance` lacks only the digest of the payload.

    Raises:
        UserError: if a number is NaN or infinite, which JSON has no word for.
    """
    try:
        whole = {**payload, "provenance": sealed(provenance, digest_json(payload))}
    except ValueError as error:
        raise UserError(
            f"{path} is not written: a number in it is NaN or infinite. Weights, hidden states or scores exceed the "
            "range of their dtype, which usually means a damaged checkpoint"
        ) from error
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def sealed(provenance: Mapping[str, Any], payload: str) -> dict[str, Any]:
    """Return the provenance with the digest of the payload and that of itself."""
    made = {**provenance, "payload": payload}
    return {**made, "seal": digest_json(made)}


def matches_seal(provenance: Mapping[str, Any], payload: str) -> bool:
    """Tell whether a sealed provenance is whole and belongs to a payload of this digest."""
    return sealed({k: v for k, v in provenance.items() if k not in {"payload", "seal"}}, payload) == provenance


def read_json(path: str | Path, layer: int | None = None) -> Any:
    """Read a JSON artifact and check its digests, and that it belongs to its path and to the wanted layer.

    The caller annotates what it reads: `layout: Layout = read_json(path)`.

    Raises:
        ArtifactError: if the file is missing, not JSON, not what its writer wrote, or another one's.
    """
    with reading(path):
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
        payload = {key: value for key, value in whole.items() if key != "provenance"}
        check_seal(path, dict(whole["provenance"]), digest_json(payload))
    if layer is not None and payload.get("layer") != layer:
        raise damaged_artifact(path, f"belongs to layer {payload.get('layer')}, not {layer}")
    return whole


def check_seal(path: str | Path, provenance: Mapping[str, Any], payload: str) -> None:
    """Check that a file holds what its writer wrote, and lies where it was written.

    Args:
        path: its path.
        provenance: what it says of its making.
        payload: the digest of its content.

    Raises:
        ArtifactError: if it does not.
    """
    if not matches_seal(provenance, payload):
        raise damaged_artifact(path, "does not hold what was written (its digest differs)")
    check_place(path, provenance)


def check_place(path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Check that a file lies where it was written.

    Raises:
        ArtifactError: if it is another one's, put in the place of one.
    """
    if "path" in provenance and not may_be(path, provenance["path"]):
        raise damaged_artifact(path, f"is a copy of {provenance['path']}, put in its place")
    number = re.fullmatch(r"layer_(\d+)", Path(path).stem)
    if number and int(number[1]) != provenance.get("layer", int(number[1])):  # of a folder that was made as a whole
        raise damaged_artifact(path, f"belongs to layer {provenance['layer']}, not {int(number[1])}")


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], provenance: Mapping[str, Any]) -> None:
    """Write a safetensors artifact with its provenance as the one metadata entry."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {PROVENANCE: canonical(sealed(provenance, digest_tensors(tensors)))}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_tensors(path: str | Path) -> dict[str, "Tensor"]:
    """Read a safetensors artifact and check its digest and path.

    Raises:
        ArtifactError: if the file is missing, truncated, not what its writer wrote, or another one's.
    """
    from safetensors import safe_open

    with reading(path):
        digest = digest_tensor_file(path)  # first, because it checks the header
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            check_seal(path, json.loads(file.metadata()[PROVENANCE]), digest)
    return tensors


def write_state(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write a state of a job into its scratch folder, whose name no other job's folder has."""
    write_tensors(path, tensors, {"owner": _owner(path)})


def read_state(path: Path) -> dict[str, "Tensor"]:
    """Read the state of a job.

    Raises:
        ArtifactError: if it is missing, damaged, or another one: of another job, or of other rows or layers.
    """
    tensors = read_tensors(path)
    owner = json.loads(read_header(path).metadata[PROVENANCE])["owner"]
    if owner != _owner(path):
        raise damaged_artifact(path, f"is another state, {owner}, put in its place")
    return tensors


def _owner(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def check_files(folder: str | Path, digests: Mapping[str, str], original: bool = False, once: bool = False) -> None:
    """Check that a folder's files are those whose digests were recorded.

    Args:
        folder: folder of the files.
        digests: {name: sha256}.
        original: whether it is the user's own checkpoint, which no job can make again.
        once: whether this process may check or hash them more than once: it reads them once.

    Raises:
        ArtifactError: if one is missing or differs.
    """
    for name, digest in digests.items():
        path = Path(folder, name)
        refuse_no_file(path)
        fact = None if path.is_file() else "is missing"
        if not fact and (sha256_once if once else sha256)(path) != digest:
            fact = "is not the file that was recorded (its sha256 differs)"
        if fact and original:
            raise ArtifactError(
                f"{path} {fact}. The checkpoint was changed or damaged after the job `layout` read it. Put the old "
                "file back; or, if you want the change, run `snakemake --forcerun layout`"
            )
        if fact:
            raise damaged_artifact(path, fact)


def check_whole(folder: str | Path, digests: Mapping[str, str]) -> None:
    """Check that a folder that a job has made holds what the job wrote, and nothing else that a reader would find.

    Args:
        folder: folder of the files; hidden ones, which are Snakemake's, do not count.
        digests: {name: sha256} from the folder's provenance.json.

    Raises:
        ArtifactError: if a file is missing, differs, or is none of the job's.
    """
    check_files(folder, digests, once=True)
    listed = {Path(folder, name) for name in (*digests, "provenance.json")}
    for path in sorted(Path(folder).rglob("[!.]*")):
        if path not in listed and (path.is_symlink() or not path.is_dir()):
            raise ArtifactError(
                f"{path} was not written by the job that made {folder}, and whoever loads the checkpoint may read it. "
                "Move it elsewhere, or change a copy of the folder outside results/"
            )
