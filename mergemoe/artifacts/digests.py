"""Digests of artifacts' content. Files are read without torch, which takes longer to import than a file to check.

A digest of tensors covers names, types, shapes and bytes, so a file and its tensors in memory have the same one.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergemoe.artifacts.formats.hdf5_attributes import read_attribute
from mergemoe.artifacts.formats.safetensors_header import read_header
from mergemoe.artifacts.reading import reading, refuse_no_file

if TYPE_CHECKING:
    from torch import Tensor

PROVENANCE = "mergemoe"  # the key of the provenance in a file's metadata; safetensors would order two at random
ROWS = 65536  # of a dataset, read at once
DEFLATED = 1100  # times its size in a file, a dataset can have at most; deflate's own limit is 1032
TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def digest_artifact(path: str | Path) -> str:
    """Return the digest of the payload of an artifact: JSON, safetensors or HDF5.

    Raises:
        ArtifactError: if it cannot be read.
    """
    path = Path(path)
    with reading(path):
        if path.suffix == ".json":
            whole = json.loads(path.read_text(encoding="utf-8"))
            return digest_json({key: value for key, value in whole.items() if key != "provenance"})
        if path.suffix == ".safetensors":
            return digest_tensor_file(path)
        import h5py  # not every study has captures left

        with h5py.File(path, locking=False) as file:  # not every file system has locks
            return digest_activation_file(file)


def digest_tensor_file(path: str | Path) -> str:
    """Return the digest of a safetensors file's tensors.

    Raises:
        ValueError: if the file is damaged, or has a type that no artifact has.
    """
    whole = hashlib.sha256()
    tensors = read_header(path).tensors
    with Path(path).open("rb") as file:
        for name, entry in sorted(tensors.items()):
            if entry.dtype not in TORCH:
                raise ValueError(f"{name} has the type {entry.dtype}")
            whole.update(canonical([name, f"torch.{TORCH[entry.dtype]}", entry.shape]).encode())
            file.seek(entry.start)
            whole.update(file.read(entry.end - entry.start))
    return whole.hexdigest()


def digest_activation_file(file: Any) -> str:
    """Return the digest of an open HDF5 file: names, types, shapes, attributes and bytes of its datasets.

    Raises:
        ValueError: if it holds anything but datasets of numbers, or they cannot fit into a file of its size.
    """
    whole, room = hashlib.sha256(), DEFLATED * Path(file.filename).stat().st_size
    whole.update(canonical(_attributes(file, without=PROVENANCE)).encode())
    for name in sorted(file):
        if type(file.get(name, getlink=True)).__name__ != "HardLink" or not hasattr(file[name], "dtype"):
            raise ValueError(f"{name} is no dataset of this file")
        dataset = file[name]
        if dataset.dtype.kind not in "biuf" or not dataset.shape or 0 in dataset.shape[1:] or dataset.nbytes > room:
            raise ValueError(f"{name} is {dataset.dtype} {list(dataset.shape)} in a file of {room // DEFLATED:,} bytes")
        if dataset.is_virtual or dataset.external:  # its bytes lie in another file, which may not even end
            raise ValueError(f"the numbers of {name} lie in another file")
        if dataset.chunks and (dataset.chunks[0] > ROWS or dataset.chunks[1:] != dataset.shape[1:]):
            raise ValueError(f"{name} of {list(dataset.shape)} has chunks of {list(dataset.chunks)}")
        facts = [name, str(dataset.dtype), list(dataset.shape), _attributes(dataset)]
        whole.update(canonical(facts).encode())
        for start in range(0, len(dataset), ROWS):
            whole.update(dataset[start : start + ROWS].tobytes())
    return whole.hexdigest()


def _attributes(owner: Any, without: str = "") -> dict[str, str]:
    return {name: read_attribute(owner, name) for name in owner.attrs if name != without}


def sha256(path: str | Path) -> str:
    """Return the sha256 of a file, or of a folder's files and their names, without hidden files (Snakemake's)."""
    path = Path(path)
    if path.is_dir():
        return digest_json(sha256_each(path))
    refuse_no_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_each(folder: str | Path) -> dict[str, str]:
    """Return {name: sha256} of a folder's files, their names relative to it, without hidden files."""
    files = sorted(path for path in Path(folder).rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def sha256_once(path: str | Path) -> str:
    """Return the sha256 of a file of which a process may read many parts: it is read again only if it has changed."""
    found = Path(path).stat()
    return _sha256_of(Path(path).resolve(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.cache
def _sha256_of(path: Path, *state: int) -> str:
    """Return the sha256 of a file in this state; nobody can set the last number, the time of its last change."""
    return sha256(path)


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
