"""The HDF5 file of one layer's calibration activations: written batch by batch, checked, read in chunks.

Datasets: hidden [n, H], expert_index [n, K], expert_weight [n, K], router_logits [n, N], sequence [n], and heldout [S],
which marks those of the S sequences that no fit uses. Padding is left out. bfloat16 is stored as its 16 bits;
compression is lossless. The digest in the provenance covers names, types, shapes and bytes.
"""

import json
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from mergemoe import errors
from mergemoe.artifacts import digests, store
from mergemoe.artifacts.formats.hdf5_attributes import read_attribute, write_attribute
from mergemoe.artifacts.reading import reading
from mergemoe.moe.tokens import Activations

CHUNK_ROWS = 1024


class Writer:
    """Append batches to a new file; `close` seals it with its provenance."""

    def __init__(self, path: Path, heldout: Tensor):
        self.file: Any = h5py.File(path, "w", locking=False)  # its name is temporary, and no other writes to it
        self.datasets: dict[str, Any] = {}  # held open: when one is forgotten, h5py writes it and swallows an error
        self.file["heldout"] = heldout.bool().cpu().numpy()

    def append(self, **arrays: Tensor) -> None:
        """Add rows to every dataset."""
        for name, rows in arrays.items():
            array = _bits(rows)
            if name not in self.datasets:
                options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                chunk = (CHUNK_ROWS, *array.shape[1:])
                empty = (0, *array.shape[1:])
                dataset = self.file.create_dataset(
                    name, empty, array.dtype, maxshape=(None, *array.shape[1:]), chunks=chunk, **options
                )
                write_attribute(dataset, "dtype", str(rows.dtype).removeprefix("torch."))
                self.datasets[name] = dataset
            dataset = self.datasets[name]
            dataset.resize(len(dataset) + len(array), axis=0)
            dataset[-len(array) :] = array

    def close(self, provenance: Mapping[str, Any]) -> None:
        """Write provenance and digest, and close."""
        self.file.flush()
        digest = digests.digest_activation_file(self.file)
        write_attribute(self.file, digests.PROVENANCE, digests.canonical(store.sealed(provenance, digest)))
        self.file.close()

    def discard(self) -> None:
        """Close without a file: HDF5 would try again to write what the disk did not take, and print each failure."""
        if not self.file:
            return
        nowhere, limits = os.memfd_create("discarded"), resource.getrlimit(resource.RLIMIT_FSIZE)
        os.dup2(nowhere, self.file.id.get_vfd_handle())
        os.close(nowhere)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))  # it may be what was met
        try:
            self.file.close()
        except (OSError, RuntimeError):  # HDF5 cannot go on after some failures; what was written is deleted
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Reader(Activations):
    """A sealed file, checked when it is opened."""

    def __init__(self, path: str | Path, layer: int | None = None):
        """Open the file and check that it is of the layer that is wanted.

        Raises:
            ArtifactError: if it is truncated, not what its writer wrote, or another layer's.
        """
        self.path = path
        with reading(path):
            self.file: Any = h5py.File(path, "r", locking=False)
            self.provenance = provenance = json.loads(read_attribute(self.file, digests.PROVENANCE))
            store.check_seal(path, provenance, digests.digest_activation_file(self.file))
            sequence = torch.from_numpy(self.file["sequence"][:].astype(np.int64))
            heldout = torch.from_numpy(self.file["heldout"][:])
        if layer is not None and provenance["layer"] != layer:
            raise errors.damaged_artifact(path, f"belongs to layer {provenance['layer']}, not {layer}")
        super().__init__(heldout[sequence], self.file["expert_index"].shape[1])

    def __enter__(self) -> "Reader":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.file.close()

    def read(self, name: str, start: int, rows: int) -> Tensor:
        """Return some rows of a dataset in their true type."""
        with reading(self.path):
            dataset = self.file[name]
            tensor = torch.from_numpy(dataset[start : start + rows])
        return tensor.view(torch.bfloat16) if read_attribute(dataset, "dtype") == "bfloat16" else tensor


def _bits(rows: Tensor) -> np.ndarray:
    rows = rows.detach().cpu().contiguous()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
