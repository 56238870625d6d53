"""The header of a safetensors file is compared with the file before anything is read by it."""

import json

import pytest

from mergemoe.artifacts.formats.safetensors_header import LONGEST, read_header

ONE = {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}


def entry(**changes):
    return json.dumps({"x": {**ONE, **changes}})


def written(path, header, data=3, length=None):
    text = header.encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


CASES = {
    "cut inside": (dict(header=entry(), data=0, length=100), r"is truncated inside its header of 100"),
    "cut in the data": (dict(header=entry(), data=2), "has [0-9]+ bytes, but its header promises"),
    "longer than it says": (dict(header=entry(), data=9), "has [0-9]+ bytes, but its header promises"),
    "a type that there is not": (dict(header=entry(dtype="U7")), "x has the type U7"),
    "a negative offset": (dict(header=entry(data_offsets=[-3, 0])), r"the offsets \[-3, 0\]"),
    "a true for a size": (dict(header=entry(shape=[True])), r"the shape \[True\]"),
    "more numbers than bytes": (dict(header=entry(shape=[4])), "x of U8 .4. takes 4 bytes, and has 3"),
    "a key twice": (dict(header=f'{{"x": {json.dumps(ONE)}, "x": {json.dumps(ONE)}}}'), "x is there twice"),
    "a gap": (dict(header=entry(data_offsets=[1, 4]), data=4), "has a gap or an overlap before x, at byte"),
    "metadata of numbers": (dict(header=json.dumps({"__metadata__": {"a": 1}, "x": ONE})), "its metadata is not text"),
    "no JSON": (dict(header="{"), "does not begin with a safetensors header"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_header_that_does_not_fit_its_file_is_refused_with_the_fact(name, tmp_path):
    content, words = CASES[name]
    with pytest.raises(ValueError, match=words):
        read_header(written(tmp_path / "x.safetensors", **content))


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    path = written(tmp_path / "x.safetensors", "{", length=LONGEST + 1)
    with path.open("r+b") as file:
        file.truncate(LONGEST + 100)  # sparse
    with pytest.raises(ValueError, match="safetensors reads"):
        read_header(path)


def test_what_fits_is_read(tmp_path):
    header = read_header(written(tmp_path / "x.safetensors", entry()))
    assert header.tensors["x"].shape == [3] and header.tensors["x"].end - header.tensors["x"].start == 3
