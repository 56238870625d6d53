"""Token sequences from text: documents in an order drawn by seed, packed or padded to one length."""

import gzip
import hashlib
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mergemoe.errors import UserError

Encode = Callable[[str], list[int]]  # text -> token ids, no special tokens


class Sequences(NamedTuple):
    """Rows of one length; `mask` is 1 on tokens and 0 on padding; `documents` is the manifest."""

    ids: list[list[int]]
    mask: list[list[int]]
    documents: list[dict[str, Any]]


def read_documents(
    source: str | None,
    field: str,
    dataset: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
) -> list[str]:
    """Return the documents of a local file, or of a Hugging Face data set at one commit.

    A .jsonl file has one document a row, under `field`; a .txt file has documents between lines
    `<|endoftext|>`, or is one document. Both may be gzipped.

    Raises:
        UserError: if the file is missing, of another kind, or lacks the field.
    """
    if source is None:
        import datasets  # of the extra `eval`; a local file does not need it

        rows: Any = datasets.load_dataset(str(dataset), subset, revision=revision, split=split)
        return list(rows[field])
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file (a `source` of params.yaml)")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read().decode("utf-8-sig").replace("\r\n", "\n")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): it is damaged or not complete, or not what its name says (.gz is gzip, "
            "text is UTF-8). Bring it again, or name another `source` in params.yaml"
        ) from None
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "txt":
        return [d for d in text.rstrip("\n").split("\n<|endoftext|>\n") if d]
    if kind != "jsonl":
        raise UserError(f"{path}: a `source` is a .jsonl or .txt file, gzipped or not")
    try:
        return [json.loads(line)[field] for line in text.split("\n") if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not every row is a JSON object with the key {field!r} ({error!r})") from error


def sequences_from_source(
    tokenizer: Any, *, samples: int, length: int, seed: int, pack: bool, field: str, **location: Any
) -> Sequences:
    """Read documents and draw sequences with a transformers tokenizer; `location` is what read_documents takes."""
    end = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has neither a bos_token nor an eos_token, which begins every "
            "document here: set one in its tokenizer_config.json"
        )
    documents = read_documents(field=field, **location)
    if not any(tokenizer.encode(document, add_special_tokens=False) for document in documents[:10]):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} makes no token of the first documents: "
            "are its files (tokenizer.json and the like) in the checkpoint's folder, and is there text?"
        )
    return draw_sequences(
        documents,
        lambda document: tokenizer.encode(document, add_special_tokens=False),
        end,
        samples=samples,
        length=length,
        seed=seed,
        pack=pack,
        source=location["source"] or location["dataset"],
    )


def draw_sequences(
    documents: list[str], encode: Encode, end: int, samples: int, length: int, seed: int, pack: bool, source: str = ""
) -> Sequences:
    """Draw sequences of tokens.

    Documents come in an order shuffled by seed. Packed, they are joined, each begun by the token `end`, and cut
    into rows; not packed, each row is one document, begun by `end`, cut to `length` or padded on the right.

    Raises:
        UserError: if the text is too short.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    encoded = ((i, [end, *encode(documents[i])]) for i in order)
    ids, manifest = _packed(encoded, samples, length) if pack else _single(encoded, samples, length)
    if len(ids) < samples:
        raise UserError(
            f"{source or 'the text'} gives {len(ids)} sequences of {length} tokens (from {len(documents)} documents), "
            f"params.yaml asks for {samples}: lower `samples` or `length`, or bring more text"
        )
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
    for entry in manifest:
        entry["sha256"] = hashlib.sha256(documents[entry["document"]].encode()).hexdigest()
    return Sequences([row + [end] * (length - len(row)) for row in ids], mask, manifest)


def _packed(encoded: Iterator[tuple[int, list[int]]], samples: int, length: int) -> tuple[list, list]:
    stream: list[int] = []
    manifest = []
    for i, tokens in encoded:
        manifest.append({"document": i, "tokens": min(len(tokens), samples * length - len(stream))})
        stream += tokens
        if len(stream) >= samples * length:
            break
    rows = [stream[k : k + length] for k in range(0, samples * length, length)]
    return [row for row in rows if len(row) == length], manifest


def _single(encoded: Iterator[tuple[int, list[int]]], samples: int, length: int) -> tuple[list, list]:
    chosen = list(itertools.islice(((i, t[:length]) for i, t in encoded if len(t) > 1), samples))
    return [tokens for _, tokens in chosen], [{"document": i, "tokens": len(t)} for i, t in chosen]


def heldout_count(samples: int, holdout: float) -> int:
    """Return how many of the sequences are held out: the share, rounded, and at least one if the share is not 0."""
    return max(1, round(samples * holdout)) if holdout else 0


def heldout_rows(samples: int, holdout: float, seed: int) -> list[bool]:
    """Return which sequences are held out: heldout_count of them, drawn by seed.

    Raises:
        UserError: if nothing would be left to fit on.
    """
    count = heldout_count(samples, holdout)
    if count >= samples:
        raise UserError(f"holdout {holdout} of {samples} samples leaves none to fit on: lower it or raise `samples`")
    chosen = set(random.Random(f"holdout {seed}").sample(range(samples), count))
    return [row in chosen for row in range(samples)]
