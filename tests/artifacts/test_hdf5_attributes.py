"""Text in HDF5 attributes: what is written is read, and nothing else is."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergemoe.artifacts.formats.hdf5_attributes import read_attribute, write_attribute

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)
OTHERS = {
    "of a variable length": "float32",
    "a number": 3.5,
    "several": np.array([b"a", b"b"]),
    "an array of one": np.array([b"a"]),
    "nothing": h5py.Empty("S4"),
}


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(text=texts)
def test_what_is_written_is_read(text, tmp_path):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        write_attribute(file, "name", text)
    with h5py.File(tmp_path / "one.h5") as file:
        assert read_attribute(file, "name") == text
    assert b"GCOL" not in (tmp_path / "one.h5").read_bytes()  # no global heap


@pytest.mark.parametrize("value", OTHERS.values(), ids=OTHERS)
def test_anything_else_is_refused_before_it_is_read(value, tmp_path):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.attrs["name"] = value
        with pytest.raises(ValueError, match="the attribute name is no text of a fixed length"):
            read_attribute(file, "name")
        with pytest.raises(KeyError):
            read_attribute(file, "other")


READS = """\
import sys
from mergemoe.artifacts import digests
try:
    digests.digest_artifact(sys.argv[1])
except Exception as error:
    print(error)
"""


def test_a_damaged_heap_that_its_library_reads_without_an_end_is_refused(tmp_path):
    path = tmp_path / "layer_001.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
        file["x"].attrs["dtype"] = "float32"
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16  # behind it: its version and size; then each object's number, count and size
    content[first + 8 : first + 16] = (2**64 - 16).to_bytes(8, "little")
    path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", READS, path], capture_output=True, text=True, timeout=60, check=True)
    assert "the attribute dtype is no text of a fixed length" in done.stdout
