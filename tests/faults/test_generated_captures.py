"""Generated captures: an HDF5 file of activations, changed in its parts; it is refused by name, or read as it was."""

import shutil
from collections import Counter

import chance
import h5py
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from mergemoe.artifacts import digests
from mergemoe.artifacts.formats.hdf5_attributes import write_attribute
from mergemoe.calibration.activation_file import Reader

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

READ = ("hidden", "expert_index", "expert_weight", "router_logits")
NAMES = (*READ, "sequence", "heldout")
TYPES = ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "u8", ">f4", "c8", "?", "S4", "O"]
TEXTS = ["float32", "bfloat16", "float16", "uint16", "x" * 9999, " "]
sizes = st.integers(0, 4) | st.integers(0, 60).map(lambda power: 2**power)


@st.composite
def changes(draw):
    """Draw what is done to which dataset, and with what."""
    name = draw(st.sampled_from(NAMES))
    how = draw(
        st.sampled_from(
            [
                "none",
                "type",
                "shape",
                "huge",
                "group",
                "soft",
                "external",
                "delete",
                "more",
                "attribute",
                "seal",
                "text",
                "scalar",
            ]
            + ["number", "hard", "empty", "compact", "raw"]
        )
    )
    shape = tuple(draw(st.lists(sizes, max_size=3)))
    value = draw(
        st.one_of(
            st.sampled_from(
                ["float32", "bfloat16", "float16", "uint16", "", "\ud83d", "x" * 9999, b"float32", b"\xff"]
            ),
            st.integers(0, 2**63),
            st.floats(),
            st.lists(st.integers(0, 9), max_size=3).map(np.array),
            st.just(h5py.Empty("f4")),
        )
    )
    return (
        name,
        how,
        draw(st.sampled_from(TYPES)),
        shape,
        value,
        draw(st.sampled_from(NAMES)),
        draw(st.integers(0, 2**32)),
    )


def change(path, name, how, kind, shape, value, other, place):
    """Change a copy; what HDF5 itself does not write, it leaves."""
    if how == "raw":
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << place % 8
        return path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        held, marks = file[name][:], dict(file[name].attrs)
        if how == "attribute":
            file[name].attrs["dtype"] = value
        elif how == "seal":
            file.attrs[digests.PROVENANCE] = value
        elif how == "text":
            write_attribute(file[name], "dtype", TEXTS[place % len(TEXTS)])
        elif how == "more":
            file.create_dataset("more", shape, kind, chunks=True if shape and all(shape) else None)
        elif how == "number":
            flat = file[name]
            flat[place % len(held)] = 1 - np.asarray(held[place % len(held)])
        elif how != "none":
            del file[name]
        if how == "type":
            file[name] = held.astype(kind)
        elif how == "shape":
            file[name] = np.resize(held, [min(size, 64) for size in shape])
        elif how == "huge":
            file.create_dataset(
                name, shape, kind, chunks=tuple(min(size, 64) or 1 for size in shape) if shape else None
            )
        elif how == "group":
            file.create_group(name).attrs["dtype"] = value
        elif how == "soft":
            file[name] = h5py.SoftLink(f"/{other}")
        elif how == "external":
            file[name] = h5py.ExternalLink("/dev/zero" if place % 2 else "nowhere.h5", f"/{other}")
        elif how == "hard" and other != name:
            file[name] = file[other]
        elif how == "scalar":
            file[name] = 1.0
        elif how == "empty":
            file[name] = h5py.Empty(kind)
        elif how == "compact":
            file.create_dataset(name, data=held)  # the same numbers, stored otherwise
        if how in {"type", "shape", "huge", "scalar", "compact"}:
            file[name].attrs.update(marks)


def numbers(path):
    with Reader(path, 1) as reader:
        return {"held": reader.held} | {name: reader.read(name, 0, len(reader.held)) for name in READ}


def equal(one, other):
    return all(part.dtype == other[name].dtype and torch.equal(part, other[name]) for name, part in one.items())


def test_every_file_is_refused_by_name_or_read_as_it_was(captured, tmp_path):
    counts, wrong, path = Counter(), {}, tmp_path / captured[1].name
    expected = numbers(captured[1])

    def check(drawn):
        shutil.copyfile(captured[1], path)
        try:
            change(path, *drawn)
        except (TypeError, ValueError, OSError, RuntimeError, OverflowError):
            counts["not written"] += 1
            return
        for what, call in {"numbers": numbers, "digest": digests.digest_artifact}.items():
            seen, found = chance.outcome(lambda: call(path))  # noqa: B023
            if seen == "refused":
                why = chance.unclear(str(found)) or (None if str(path) in str(found) else "it names no file")
                seen = f"unclear: {why}" if why else seen
            elif seen == "read" and what == "numbers" and not equal(expected, found):
                seen = "wrong numbers"
            counts[f"{what} {seen}"] += 1
            if seen not in {"refused", "read"}:
                wrong.setdefault((what, seen, drawn[1]), f"{str(drawn)[:300]} {chance.traced(found)}")

    chance.examples("generated captures", changes(), check)
    chance.tell("generated captures", counts)
    if wrong:
        pytest.fail("\n".join(f"{seen}: {one}" for seen, one in list(wrong.items())[:30]), pytrace=False)
