"""The header of a safetensors file, checked against the file's size before anything is read from it.

The file is the header's length in 8 bytes, the header in JSON, and the bytes of the tensors without a gap
(https://github.com/huggingface/safetensors, section Format).
"""

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mergemoe.errors import in_short

LONGEST = 100_000_000  # bytes of a header; the library reads no longer one
DEEPEST = 64  # dimensions of a tensor; PyTorch's limit
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class Entry(NamedTuple):
    """A stored tensor; its bytes are those from start to end of the file."""

    dtype: str
    shape: list[int]
    start: int
    end: int


class Header(NamedTuple):
    """The tensors of a file by name, and its metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Read the header of a file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no safetensors file, or has another size than its header says. The message completes a
            sentence that begins with the path.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            raise ValueError(f"has {size:,} bytes and is truncated inside its header of {length:,}")
        if length > LONGEST:
            raise ValueError(f"has a header of {length:,} bytes; safetensors reads {LONGEST:,} at most")
        text = file.read(length)
    try:
        content = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair, which the library does not read
        if text[:1].isspace():
            raise ValueError("it begins with a space")
        metadata = content.pop("__metadata__", {})
        tensors = {name: _entry(name, stated, 8 + length) for name, stated in content.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"does not begin with a safetensors header ({in_short(error)})") from None
    _check_layout(tensors, 8 + length, size)
    return Header(tensors, metadata)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name} is there twice")
    return found


def _entry(name: str, stated: Any, first: int) -> Entry:
    dtype, shape, (start, end) = (stated.pop(key) for key in ("dtype", "shape", "data_offsets"))
    if stated:
        raise ValueError(f"{name} has a key {next(iter(stated))}")
    if not _are_counts(shape) or not _are_counts((start, end)):
        raise ValueError(f"{name} has the shape {shape} and the offsets {[start, end]}")
    if dtype not in BITS:
        raise ValueError(f"{name} has the type {dtype}")
    if (needed := math.prod(shape) * BITS[dtype]) != 8 * (end - start):
        raise ValueError(f"{name} of {dtype} {shape} takes {needed // 8:,} bytes, and has {end - start:,}")
    return Entry(dtype, shape, first + start, first + end)


def _are_counts(values: Collection[Any]) -> bool:
    return len(values) <= DEEPEST and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_layout(tensors: dict[str, Entry], first: int, size: int) -> None:
    promised = max([first, *(entry.end for entry in tensors.values())])
    if size != promised:
        raise ValueError(f"has {size:,} bytes, but its header promises {promised:,}")
    place = first
    for name, entry in sorted(tensors.items(), key=lambda one: one[1][2:]):
        if entry.start != place:
            raise ValueError(f"has a gap or an overlap before {name}, at byte {min(place, entry.start):,}")
        place = entry.end
