"""Token sequences from text: documents in an order drawn by seed, packed or padded to one length."""

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from mergemoe.calibration.chat_template import renderer
from mergemoe.calibration.documents import Documents, open_documents
from mergemoe.calibration.vocabulary import check_rows
from mergemoe.errors import UserError, in_short, naming, shown

PIECE = 2**18  # characters; a longer document is tokenized piece by piece, as far as its tokens are needed
EXPANSION = 4  # tokens of a character, at most

Encode = Callable[[str], list[int]]  # text -> token ids, no special tokens


class Sequences(NamedTuple):
    """Rows of one length; `mask` is 1 on tokens and 0 on padding; `documents` is the manifest."""

    ids: list[list[int]]
    mask: list[list[int]]
    documents: list[dict[str, Any]]
    skipped: int = 0  # rows without text, which were left out


def sequences_from_source(
    tokenizer: Any,
    vocabulary: int,
    *,
    samples: int,
    length: int,
    seed: int,
    pack: bool,
    field: str | list[str],
    **location: Any,
) -> Sequences:
    """Read documents and draw sequences with a transformers tokenizer; `location` is what open_documents takes.

    Raises:
        UserError: if the text is too short, or a token has no row among the `vocabulary` rows of the model's embedding.
    """
    end = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has neither a bos_token nor an eos_token, which begins every "
            "document here: set one in its tokenizer_config.json"
        )
    with naming(str(location.get("source") or location.get("dataset"))):
        documents = open_documents(field=field, render=renderer(tokenizer), **location)
    drawn = draw_sequences(
        documents,
        partial(_encode, tokenizer),
        end,
        samples=samples,
        length=length,
        seed=seed,
        pack=pack,
        tokenizer=tokenizer.name_or_path,
    )
    check_rows(tokenizer, max(map(max, drawn.ids)), vocabulary)
    return drawn._replace(skipped=documents.skipped)


def _encode(tokenizer: Any, document: str) -> list[int]:
    try:
        return tokenizer.encode(document, add_special_tokens=False)
    except Exception as error:  # each kind of tokenizer raises its own
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} cannot encode a document that begins with "
            f"{shown(document[:40])} ({in_short(error)}). Its files are damaged, were edited, or lack the token for "
            "unknown text. Use those that belong to the model"
        ) from None


def draw_sequences(
    documents: Documents,
    encode: Encode,
    end: int,
    samples: int,
    length: int,
    seed: int,
    pack: bool,
    tokenizer: str = "",
) -> Sequences:
    """Draw sequences of tokens.

    Documents come in an order shuffled by seed. Packed, they are joined, each begun by the token `end`, and cut
    into rows; not packed, each row is one document, begun by `end`, cut to `length` or padded on the right. A
    document is tokenized in pieces of PIECE characters, as far as its tokens are needed.

    Raises:
        UserError: if the text is too short, or gives no token.
    """
    most = (EXPANSION * documents.characters + documents.count) // length if pack else documents.count
    if most < samples:
        raise _too_short(documents, f"at most {most}", samples, length)
    order = array("q", range(documents.count))
    random.Random(seed).shuffle(order)
    drawn = zip(order, documents.read(order), strict=True)
    ids, manifest = (_packed if pack else _single)(drawn, encode, end, samples, length)
    if not any(entry["tokens"] > 1 for entry in manifest):
        raise UserError(
            f"{documents.name}: the tokenizer of {tokenizer} makes no token of the documents that were drawn "
            f"({documents.count} in all). They are empty, or files of the tokenizer (tokenizer.json and the like) are "
            "missing in the checkpoint's folder. Bring text, or these files"
        )
    if len(ids) < samples:
        raise _too_short(documents, str(len(ids)), samples, length)
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
    return Sequences([row + [end] * (length - len(row)) for row in ids], mask, manifest)


def _too_short(documents: Documents, found: str, samples: int, length: int) -> UserError:
    return UserError(
        f"{documents.name} gives {found} sequences of {length} tokens (from {documents.count} documents), params.yaml "
        f"asks for {samples}: lower `samples` or `length`, or bring more text{documents.note}"
    )


def _packed(
    drawn: Iterator[tuple[int, str]], encode: Encode, end: int, samples: int, length: int
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    stream, manifest = array("q"), []
    for i, document in drawn:
        before = len(stream)
        stream.extend(_tokens(document, encode, end, samples * length - before))
        manifest.append(_entry(i, document, len(stream) - before))
        if len(stream) == samples * length:
            break
    return [stream[k : k + length].tolist() for k in range(0, len(stream) - length + 1, length)], manifest


def _single(
    drawn: Iterator[tuple[int, str]], encode: Encode, end: int, samples: int, length: int
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    ids, manifest = [], []
    for i, document in drawn:
        if len(tokens := _tokens(document, encode, end, length)) > 1:
            ids.append(tokens)
            manifest.append(_entry(i, document, len(tokens)))
        if len(ids) == samples:
            break
    return ids, manifest


def _tokens(document: str, encode: Encode, end: int, wanted: int) -> list[int]:
    """Return the token `end` and the first tokens of a document, `wanted` of them at most."""
    tokens = [end]
    for first in range(0, len(document), PIECE):
        if len(tokens) >= wanted:
            break
        tokens += encode(document[first : first + PIECE])
    return tokens[:wanted]


def _entry(i: int, document: str, tokens: int) -> dict[str, Any]:
    return {"document": i, "tokens": tokens, "sha256": hashlib.sha256(document.encode()).hexdigest()}


def heldout_count(samples: int, holdout: float) -> int:
    """Return how many of the sequences are held out: the share, rounded, and at least one if the share is not 0."""
    return max(1, round(samples * holdout)) if holdout else 0


def check_holdout(samples: int, holdout: float) -> None:
    """Check the share that is held out.

    Raises:
        UserError: if nothing would be left to fit on.
    """
    if heldout_count(samples, holdout) >= samples:
        raise UserError(f"holdout {holdout} of {samples} samples leaves none to fit on: lower it or raise `samples`")


def heldout_rows(samples: int, holdout: float, seed: int) -> list[bool]:
    """Return which sequences are held out: heldout_count of them, drawn by seed.

    Raises:
        UserError: if nothing would be left to fit on.
    """
    check_holdout(samples, holdout)
    chosen = set(random.Random(f"holdout {seed}").sample(range(samples), heldout_count(samples, holdout)))
    return [row in chosen for row in range(samples)]
