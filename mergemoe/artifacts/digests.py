"""Digests of artifacts' content. Files are read without torch, which takes longer to import than a file to check.

A digest of tensors covers names, types, shapes and bytes, so a file and its tensors in memory have the same one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergemoe import errors

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 65536  # of a dataset, read at once
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
    try:
        if path.suffix == ".json":
            whole = json.loads(path.read_text())
            return digest_json({key: value for key, value in whole.items() if key != "provenance"})
        if path.suffix == ".safetensors":
            return digest_tensor_file(path)
        import h5py  # not every study has captures left

        with h5py.File(path) as file:
            return digest_activation_file(file)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise errors.damaged_artifact(path, f"cannot be read as an artifact ({error})") from error


def digest_tensor_file(path: str | Path) -> str:
    """Return the digest of a safetensors file's tensors.

    Raises:
        ValueError: if the file is cut off, or has a type that no artifact has.
    """
    whole = hashlib.sha256()
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        head.pop("__metadata__", None)
        for name in sorted(head):
            dtype, shape, (start, end) = (head[name][key] for key in ("dtype", "shape", "data_offsets"))
            if dtype not in TORCH:
                raise ValueError(f"{name} has the type {dtype}")
            file.seek(8 + length + start)
            content = file.read(end - start)
            if len(content) != end - start:
                raise ValueError(f"{name} is cut off")
            whole.update(canonical([name, f"torch.{TORCH[dtype]}", shape]).encode())
            whole.update(content)
    return whole.hexdigest()


def digest_activation_file(file: Any) -> str:
    """Return the digest of an open HDF5 file's datasets."""
    whole = hashlib.sha256()
    for name in sorted(file):
        dataset = file[name]
        whole.update(canonical([name, str(dataset.dtype), list(dataset.shape)]).encode())
        for start in range(0, len(dataset), ROWS):
            whole.update(dataset[start : start + ROWS].tobytes())
    return whole.hexdigest()


def sha256(path: str | Path) -> str:
    """Return the sha256 of a file, or of a folder's files and their names, without hidden files (Snakemake's)."""
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
