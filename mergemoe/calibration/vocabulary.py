"""Compare the tokens that a tokenizer gives with the rows of a model's embedding."""

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergemoe.errors import UserError, naming


def check_rows(tokenizer: Any, largest: int, rows: int) -> None:
    """Check that the model's embedding has a row for every token of a text.

    Args:
        tokenizer: that made the tokens.
        largest: the largest token.
        rows: of the embedding; it may have more than the tokenizer has tokens.

    Raises:
        UserError: it has not.
    """
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} gives the token {largest} ({token!r}), but the model's "
            f"embedding has {rows} rows. The tokenizer belongs to another checkpoint, or got tokens that the "
            "weights never did. Use the one that belongs to these weights"
        )


def check_vocabulary(tokenizer: Any, rows: int, texts: Iterable[Path]) -> None:
    """Check the tokens that texts not yet drawn can give: added ones count where a file has them.

    Args:
        tokenizer: of a model.
        rows: of its embedding.
        texts: files of tasks.

    Raises:
        UserError: a token has no row in the embedding.
    """
    added = tokenizer.get_added_vocab()
    if largest := max((i for token, i in tokenizer.get_vocab().items() if token not in added), default=0):
        check_rows(tokenizer, largest, rows)
    beyond = {token: i for token, i in added.items() if i >= rows}
    for path in texts if beyond else ():
        content = _unescaped(path)
        for token, i in beyond.items():
            if token in content:
                with naming(path):
                    check_rows(tokenizer, i, rows)


def _unescaped(path: Path) -> str:
    """Return the text of a file, JSON's escapes of characters resolved; whoever reads its rows names its damage."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        with contextlib.suppress(OSError, EOFError, zlib.error):
            content = gzip.decompress(content)
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), content.decode(errors="replace"))
