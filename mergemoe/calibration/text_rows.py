"""Read the rows of a text file as a stream, gzipped or not, and refuse what is no row."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergemoe.calibration.row_text import kind_of
from mergemoe.errors import UserError

# The most that is read. All of a file is read before the first job, so a larger one would end late or never.
ROW = 2**23  # bytes of one row; JSON of this size takes 200 MB at worst
ROWS = 2**23
TEXT = 2**32  # bytes of all rows, unpacked
FIRST, PACKED = 2**24, 100  # a gzip file that gave FIRST bytes, and PACKED times its own size, holds no text


def read_chunks(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number of a row, from 1, and its bytes with the line's end; a row above ROW bytes comes in chunks.

    Raises:
        UserError: the file cannot be read, is damaged, or is too large.
    """
    path, number, total = Path(path), 1, 0
    check_file(path)
    try:
        size = path.stat().st_size
        packed = size if path.suffix == ".gz" else None
        _check_size(path, 0 if packed else size, packed)
        with path.open("rb") if packed is None else gzip.open(path) as file:
            while chunk := file.readline(ROW):
                total += len(chunk)
                _check_size(path, total, packed)
                yield number, chunk
                number += chunk.endswith(b"\n")
                if number > ROWS:
                    raise too_large(path, f"{ROWS:,} rows")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unreadable(path, number, error) from None
    except OSError as error:
        raise UserError(f"{path}: the system cannot read it ({error}). Look at its permissions and its disk") from error


def check_file(path: Path) -> None:
    """Check that a path is that of a file.

    Raises:
        UserError: it is not.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name one file of it, or join its files into one")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Correct the path in params.yaml, or bring the file")


def _check_size(path: Path, total: int, packed: int | None) -> None:
    if packed is not None and total > max(FIRST, PACKED * packed):
        raise UserError(
            f"{path}: its {packed:,} bytes unpack to more than {PACKED} times as many. No text packs so well, so "
            "something else is in it. Look into it, or name another file"
        )
    if total > TEXT:
        raise too_large(path, f"{TEXT:,} bytes of text")


def too_large(path: Path, bound: str) -> UserError:
    """Return the error for a file that has more than a bound."""
    return UserError(
        f"{path}: has more than {bound}. All of it is read before the first job, so no larger file is taken. Take a "
        "part of its rows"
    )


def unreadable(path: Path, number: int, error: Exception) -> UserError:
    """Return the error for a file that cannot be read from a row on."""
    return UserError(
        f"{path}: cannot be read from row {number} on ({error}). It is damaged or not complete, or not what its name "
        "says (.gz is gzip, text is UTF-8). Bring it again, or name another file"
    )


def decode(path: Path, number: int, chunk: bytes, decoder: codecs.IncrementalDecoder) -> str:
    """Decode a chunk with a decoder for UTF-8, and end its line with a bare newline; an empty chunk ends the file.

    Raises:
        UserError: it is not UTF-8.
    """
    zeros = chunk.count(0)
    if chunk.startswith(b"\0") or zeros > max(4, len(chunk) // 4):  # a line of UTF-16 ends inside a character
        raise unreadable(path, number, ValueError(f"{zeros} of {len(chunk)} bytes of the row are zero, as in UTF-16"))
    if chunk.endswith(b"\r\n"):
        chunk = chunk[:-2] + b"\n"
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        raise unreadable(path, number, error) from None


def read_json_rows(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the number of a row, from 1, and its JSON, not yet parsed; blank rows are left out.

    Raises:
        UserError: the file cannot be read, is damaged or is too large, or a row is too long or not UTF-8.
    """
    path = Path(path)
    for number, chunk in read_chunks(path):
        if len(chunk) == ROW and not chunk.endswith(b"\n"):
            raise UserError(
                f"{path}: row {number} has {ROW:,} bytes or more. A row holds one document, and no model reads so long "
                "a one. Split it into several rows"
            )
        line = chunk.removeprefix(b"\xef\xbb\xbf") if number == 1 else chunk
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise unreadable(path, number, error) from None
        if text.strip():
            yield number, text


def parse_row(path: str | Path, number: int, text: str) -> dict[str, Any]:
    """Return the JSON object in a row.

    Raises:
        UserError: it is none.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: row {number} is not JSON ({error}). Every row is one JSON object. Correct the row or delete it"
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{path}: row {number} is {kind_of(row)}, not a JSON object. Every row is one object, such as "
            '{"text": "..."}. Correct the row or delete it'
        )
    return row
