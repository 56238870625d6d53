"""Documents of a local file or of a Hugging Face data set, read as they are drawn, not all at once."""

import codecs
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergemoe.calibration import text_rows
from mergemoe.errors import UserError

END = "<|endoftext|>"  # a line between two documents of a .txt file
DOCUMENT = 2**23  # characters of a document in a .txt file; the rest is not read
AT_ONCE = 2**24  # characters of documents that are read in one pass over a file, about


@dataclass(frozen=True)
class Documents:
    """A text: its name in messages, the number of its documents, their characters, and how to read them."""

    name: str
    count: int
    characters: int
    read: Callable[[Sequence[int]], Iterator[str]]  # documents by their places, in this order
    note: str = ""  # what a message on too little text adds


def open_documents(
    source: str | None,
    field: str,
    dataset: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
) -> Documents:
    """Open a local file, or a Hugging Face data set at one commit. A file is read and checked once, as a stream.

    A .jsonl file has one document a row, under `field`. A .txt file has documents between lines `<|endoftext|>`; of
    one above DOCUMENT characters, the first are taken, and empty ones are left out. Both may be gzipped.

    Raises:
        UserError: the text is missing, damaged, of another kind or too large, or a row's field is no text.
    """
    if source is None:
        return _in_data_set(str(dataset), field, revision, subset, split)
    path = Path(source)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in {"txt", "jsonl"}:
        raise UserError(f"{path}: is neither a .jsonl nor a .txt file, gzipped or not. Convert it to one of these")

    def scan(wanted: Collection[int] | None = None) -> Iterator[tuple[int, str]]:
        return _of_json_lines(path, field, wanted) if kind == "jsonl" else enumerate(_of_plain_text(path))

    count = characters = cut = 0
    for _, document in scan():
        count += 1
        cut += kind == "txt" and len(document) == DOCUMENT
        characters += len(document)
    at_once = max(1, AT_ONCE * count // max(1, characters))
    note = f". {cut} of them were cut after {DOCUMENT:,} characters: put a line {END} between documents" if cut else ""
    return Documents(str(path), count, characters, lambda order: _in_passes(path, scan, order, at_once), note)


def _of_json_lines(path: Path, field: str, wanted: Collection[int] | None) -> Iterator[tuple[int, str]]:
    for i, (number, text) in enumerate(text_rows.read_json_rows(path)):
        if wanted is None or i in wanted:
            yield i, text_rows.text_in(path, number, text_rows.parse_row(path, number, text), field)


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


def _in_data_set(dataset: str, field: str, revision: str | None, subset: str | None, split: str) -> Documents:
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
    if field not in rows.column_names:
        raise UserError(f"{dataset}: has no field {field!r}. Its fields are {', '.join(rows.column_names)}")
    column = rows[field]
    return Documents(
        dataset,
        len(rows),
        rows.data.nbytes,
        lambda order: (text_rows.check_text(dataset, i + 1, field, column[i]) for i in order),
    )
