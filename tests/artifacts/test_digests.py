"""The digest of a file refuses what no artifact holds, before it reads or allocates what the file promises."""

import json
import time

import h5py
import numpy as np
import pytest

from mergemoe.artifacts import digests
from mergemoe.errors import ArtifactError

HUGE, LONG = 10**13, np.ones(digests.ROWS + 1)


def elsewhere(file):
    name = file.filename.replace("held", "other")
    with h5py.File(name, "w") as other:
        other["x"] = np.ones(3)
    file["odd"] = h5py.ExternalLink(name, "x")


def doubled(file):
    file["odd"] = h5py.SoftLink("/x")


def virtual(file, source="other.h5"):
    layout = h5py.VirtualLayout((9,), "f4")
    layout[:] = h5py.VirtualSource(source, "odd", (9,))
    file.create_virtual_dataset("odd", layout)


def itself(file):
    virtual(file, ".")


CONTENT = {
    "a link to another file": (elsewhere, "odd is no dataset of this file"),
    "a link inside the file": (doubled, "odd is no dataset of this file"),
    "endless rows of nothing": (lambda file: file.create_dataset("odd", (1 << 58, 0), "u8"), "odd is uint64 .*, 0. in"),
    "a group": (lambda file: file.create_group("odd"), "odd is no dataset of this file"),
    "text": (lambda file: file.create_dataset("odd", data=["a"]), r"odd is object \[1\]"),
    "one number": (lambda file: file.create_dataset("odd", data=1.0), r"odd is float64 \[\]"),
    "more than fits": (lambda file: file.create_dataset("odd", (HUGE,), "f4", chunks=(100,)), "in a file of"),
    "a long chunk": (lambda file: file.create_dataset("odd", data=LONG, chunks=LONG.shape), "has chunks of"),
    "a virtual dataset": (virtual, "the numbers of odd lie in another file"),
    "a virtual dataset of itself": (itself, "the numbers of odd lie in another file"),
    "external storage": (
        lambda file: file.create_dataset("odd", (9,), "f4", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]),
        "the numbers of odd lie in another file",
    ),
    "a chunk of columns": (
        lambda file: file.create_dataset("odd", (9, 4), "f4", chunks=(3, 2)),
        r"has chunks of \[3, 2\]",
    ),
}


@pytest.mark.parametrize("name", CONTENT)
def test_an_hdf5_file_of_anything_but_datasets_of_numbers_is_refused(name, tmp_path):
    write, words = CONTENT[name]
    with h5py.File(tmp_path / "held.h5", "w") as file:
        file["x"] = np.ones(3)
        write(file)
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=words):
        digests.digest_artifact(tmp_path / "held.h5")
    assert time.monotonic() - began < 5


HEADERS = {
    "a type that torch has not": (
        {"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}},
        "has the type F6_E2M3",
    ),
    "metadata that is no text": (
        {"__metadata__": {"a": 1}, "x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}},
        "its metadata is not text",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_file_of_what_no_artifact_holds_is_refused(name, tmp_path):
    content, words = HEADERS[name]
    header = json.dumps(content).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(ArtifactError, match=words):
        digests.digest_artifact(path)
