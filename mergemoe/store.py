"""The files between stages: written whole or not at all, with their provenance inside, checked when read.

Provenance is {stage, params, inputs: {path: sha256}, code, payload, seal}. `payload` is the digest of what the
file says apart from the provenance, `seal` that of the provenance; both are checked on every read, so a flipped
bit or a truncated file is named before anything is computed from it. Nothing inside a file depends on time, host
or version.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergemoe.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from torch import Tensor

RUN = "MERGEMOE_CLAIMS"  # in the environment of a run's jobs: the file of its claims, which goes when the run ends
OVER = "the run of Snakemake that this job belongs to is over, or was killed and another has begun"
LEFT = set[Path]()  # what this process would have written, and found written
KEY = "mergemoe"  # of the one metadata entry of a safetensors file; with two their order is random


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; sync it and rename it to `path` only if all went well.

    The temporary lies in results/.tmp/ where `path` lies below a folder `results`, else beside `path`.
    It may be made a file or a folder; a folder takes the place of an older one whole, or goes if that says the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = results_above(path)
    home = results / ".tmp" if results else path.parent
    home.mkdir(exist_ok=True)
    temporary = home / f"{path.name}.{socket.gethostname()}.{os.getpid()}"
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # safetensors makes 0600
            _sync(file)
        _put(temporary, path)
        _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def results_above(path: Path) -> Path | None:
    """Return the folder `results` that a path lies in."""
    return next((parent for parent in path.parents if parent.name == "results"), None)


def _put(temporary: Path, path: Path) -> None:
    """Rename; what says the same stays as it is, since another copy of this job has made it and may have readers."""
    if run_is_over():
        raise UserError(f"{path} is not written: {OVER}")
    if path.exists() and sha256(path) == sha256(temporary):
        LEFT.add(path)
        return
    try:
        os.replace(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        old = temporary.with_name(f"{temporary.name}.old")
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old)


def run_is_over() -> bool:
    """Tell whether this process is a job whose run has ended, or was killed and followed by another."""
    claims = os.environ.get(RUN)
    return claims is not None and not Path(claims).exists()


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(results: str | Path) -> None:
    """Remove the temporaries of this host's jobs that no longer run."""
    for temporary in Path(results, ".tmp").glob(f"*.{socket.gethostname()}.*"):
        if not Path("/proc", temporary.suffix[1:]).exists():
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Return the sha256 of a file, or of a folder's files and their names; hidden files (Snakemake's) do not count."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("[!.]*") if p.is_file())
        return digest_json({p.relative_to(path).as_posix(): sha256(p) for p in files})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, "Tensor"]) -> str:
    """Return the sha256 of named tensors: names, dtypes, shapes and bytes."""
    import torch  # here, so that reading JSON needs no torch

    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        whole.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def write_json(path: str | Path, payload: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write a JSON artifact; `provenance` lacks only the digest of the payload."""
    whole = {**payload, "provenance": sealed(provenance, digest_json(payload))}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n")


def sealed(provenance: Mapping[str, Any], payload: str) -> dict[str, Any]:
    """Return the provenance with the digest of the payload and that of itself."""
    made = {**provenance, "payload": payload}
    return {**made, "seal": digest_json(made)}


def holds(provenance: Mapping[str, Any], payload: str) -> bool:
    """Tell whether a sealed provenance is whole and belongs to a payload of this digest."""
    return sealed({k: v for k, v in provenance.items() if k not in {"payload", "seal"}}, payload) == provenance


def read_json(path: str | Path, layer: int | None = None) -> dict[str, Any]:
    """Read a JSON artifact and check its digests, and that it is of the layer that is wanted.

    Raises:
        ArtifactError: where the file is missing, not JSON, not what its writer wrote, or another layer's.
    """
    try:
        whole = json.loads(Path(path).read_text())
        payload = {key: value for key, value in whole.items() if key != "provenance"}
        provenance = dict(whole["provenance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"cannot be read as an artifact ({error})") from error
    if not holds(provenance, digest_json(payload)):
        raise damaged(path, "does not hold what was written (its digest differs)")
    if layer is not None and payload.get("layer") != layer:
        raise damaged(path, f"is of layer {payload.get('layer')}, not {layer}")
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
        ArtifactError: where the file is truncated, or not what its writer wrote.
    """
    from safetensors import SafetensorError, safe_open

    from mergemoe import payloads

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            provenance = json.loads((file.metadata() or {})[KEY])
        whole = holds(provenance, payloads.of_tensors(path))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, f"cannot be read as an artifact ({error})") from error
    if not whole:
        raise damaged(path, "does not hold what was written (its digest differs)")
    return tensors


def check_files(folder: str | Path, digests: Mapping[str, str], original: bool = False) -> None:
    """Check that a folder's files are those whose digests were recorded.

    Args:
        folder: the files'.
        digests: {name: sha256}.
        original: whether it is the user's own checkpoint, which no job can make again.

    Raises:
        ArtifactError: where one is missing or differs.
    """
    for name, digest in digests.items():
        path = Path(folder, name)
        fact = None if path.is_file() else "is missing"
        if not fact and sha256(path) != digest:
            fact = "is not the file that was recorded (its sha256 differs)"
        if fact and original:
            raise ArtifactError(
                f"{path} {fact}: the checkpoint was changed or damaged after the job `layout` looked at it. Bring it "
                "back as it was; or, if the change is meant, run `snakemake` again, which begins with `layout` then"
            )
        if fact:
            raise damaged(path, fact)


def damaged(path: str | Path, fact: str) -> ArtifactError:
    """Return the error that names a damaged artifact and the way out."""
    return ArtifactError(f"{path} {fact}. Delete it and run `snakemake` again: it will be made anew.")
