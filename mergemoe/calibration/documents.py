"""Documents of a local file or of a Hugging Face data set, read as they are drawn, not all at once."""

import codecs
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mergemoe.calibration import parquet_rows, row_text, text_rows
from mergemoe.calibration.chat_template import Render, no_template
from mergemoe.calibration.row_text import InvalidText
from mergemoe.errors import UserError

END = "<|endoftext|>"  # a line between two documents of a .txt file
DOCUMENT = 2**23  # characters of a document in a .txt file; the rest is not read
AT_ONCE = 2**24  # characters of documents that are read in one pass over a file, about


Row = tuple[int, Callable[[], dict[str, Any]]]  # its number, from 1, and what reads it


@dataclass(frozen=True)
class Documents:
    """A text: its name in messages, the number of its documents, their characters, and how to read them."""

    name: str
    count: int
    characters: int
    read: Callable[[Sequence[int]], Iterator[str]]  # documents by their places, in this order
    note: str = ""  # what a message on too little text adds
    skipped: int = 0  # rows that were left out


def open_documents(
    source: str | None,
    field: str | Sequence[str],
    dataset: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    skip_invalid: bool = False,
    render: Render = no_template,
) -> Documents:
    """Open a local file, or a Hugging Face data set at one commit. A file is read and checked once, as a stream.

    A .jsonl or .parquet file has one document a row, under `field`. A .txt file has documents between lines
    `<|endoftext|>`; of one above DOCUMENT characters, the first are taken, and empty ones are left out. Text files may
    be gzipped.

    Args:
        source: the file.
        field: the key of the text in a row, or several, whose texts are joined.
        dataset: a data set of the hub, in place of a file.
        revision: its full commit hash.
        subset: its configuration.
        split: its split.
        skip_invalid: whether rows without text are left out; else one is an error.
        render: makes one text of messages.

    Raises:
        UserError: the text is missing, damaged, of another kind or too large, or a row has no text.
    """
    fields = (field,) if isinstance(field, str) else tuple(field)
    if source is None:
        return _in_data_set(str(dataset), fields, revision, subset, split, skip_invalid, render)
    path = Path(source)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if path.suffix == ".parquet":
        rows = partial(_parquet, path, fields)
    elif kind == "jsonl":
        rows = partial(_json_lines, path)
    elif kind == "txt":
        return _plain_text(path)
    else:
        text_rows.check_file(path)
        raise UserError(
            f"{path}: is neither a .jsonl nor a .txt file, gzipped or not, nor a .parquet file. Convert it to one"
        )
    return _in_rows(path, rows, fields, skip_invalid, render)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, text in text_rows.read_json_rows(path):
        yield number, partial(text_rows.parse_row, path, number, text)


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    for number, row in parquet_rows.read_parquet_rows(path, fields):
        yield number, partial(_of_table, row)


def _of_table(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row_text.without_nulls(value) for key, value in row.items()}


def _in_rows(
    path: Path, rows: Callable[[], Iterator[Row]], fields: Sequence[str], skip_invalid: bool, render: Render
) -> Documents:
    def text(number: int, read: Callable[[], dict[str, Any]]) -> str:
        return row_text.text_of(path, number, read(), fields, render)

    def scan(wanted: Collection[int]) -> Iterator[tuple[int, str]]:
        valid = (row for i, row in enumerate(rows()) if i not in skipped)
        return ((i, text(*row)) for i, row in enumerate(valid) if i in wanted)

    count, characters, skipped, first = 0, 0, set[int](), ""
    for i, row in enumerate(rows()):
        try:
            characters += len(text(*row))
            count += 1
        except InvalidText as error:
            if not skip_invalid:
                raise
            skipped.add(i)
            first = first or str(error)
    at_once = max(1, AT_ONCE * count // max(1, characters))
    note = f". {len(skipped)} rows were left out; the first: {first}" if skipped else ""
    read = partial(_in_passes, path, scan, at_once=at_once)
    return Documents(str(path), count, characters, read, note, len(skipped))


def _plain_text(path: Path) -> Documents:
    count = characters = cut = 0
    for document in _of_plain_text(path):
        count += 1
        characters += len(document)
        cut += len(document) == DOCUMENT
    at_once = max(1, AT_ONCE * count // max(1, characters))
    note = f". {cut} of them were cut after {DOCUMENT:,} characters: put a line {END} between documents" if cut else ""
    read = partial(_in_passes, path, lambda wanted: enumerate(_of_plain_text(path)), at_once=at_once)
    return Documents(str(path), count, characters, read, note)


def _of_plain_text(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    document, room, number, begins = io.StringIO(), DOCUMENT, 1, True
    for number, chunk in text_rows.read_chunks(path):
        line = text_rows.decode(path, number, chunk, decoder)
        if begins and line.rstrip("\n") == END:
            if whole := document.getvalue().removesuffix("\n" if room else ""):
                yield whole
            document, room = io.StringIO(), DOCUMENT
        else:
            room -= document.write(line[:room])
        begins = line.endswith("\n")
    text_rows.decode(path, number, b"", decoder)
    if whole := document.getvalue().rstrip("\n" if room else ""):
        yield whole


def _in_passes(
    path: Path, scan: Callable[[Collection[int]], Iterator[tuple[int, str]]], order: Sequence[int], at_once: int
) -> Iterator[str]:
    """Yield documents in an order, by passes over the file that each keep a bounded number of them."""
    for first in range(0, len(order), at_once):
        places = order[first : first + at_once]
        missing, found = set(places), {}
        for i, document in scan(missing):
            if i in missing:
                found[i] = document
                if len(found) == len(missing):
                    break
        if len(found) < len(missing):
            raise UserError(f"{path}: became shorter while it was read. Run again when nothing writes to it")
        yield from (found.pop(i) for i in places)


def _in_data_set(
    dataset: str,
    fields: Sequence[str],
    revision: str | None,
    subset: str | None,
    split: str,
    skip_invalid: bool,
    render: Render,
) -> Documents:
    import datasets  # of the extra `eval`; a local file does not need it
    from datasets.exceptions import DatasetsError

    try:
        rows: Any = datasets.load_dataset(dataset, subset, revision=revision, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{dataset}: the data set cannot be loaded ({reason}). Correct `dataset`, `revision`, `subset` or `split`; "
            "if it is not in the cache, export HF_HUB_OFFLINE=0 on a machine that reaches the hub"
        ) from error
    if missing := [field for field in fields if field not in rows.column_names]:
        raise UserError(f"{dataset}: has no field {missing[0]!r}. Its fields are {', '.join(rows.column_names)}")
    rows = rows.select_columns(list(fields))
    if skip_invalid:
        return _in_rows(
            Path(dataset), lambda: ((i, partial(_of_table, row)) for i, row in enumerate(rows, 1)), fields, True, render
        )

    def read(order: Sequence[int]) -> Iterator[str]:
        return (row_text.text_of(dataset, i + 1, _of_table(rows[i]), fields, render) for i in order)

    return Documents(dataset, len(rows), rows.data.nbytes, read)
