"""Cut the text of each domain into passages, and split them into training, calibration and held-out parts.

The corpora hold one gzip file per domain. A line `<|endoftext|>` separates documents. A document is cut at blank lines
into passages of about 2,000 characters, so that a domain of few long works can be split inside the works. Among each 20
passages in reading order, number 0 is held out, number 10 is for calibration, and the others are for training. No
passage is in two parts.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

DOMAINS = ("books", "code", "math", "speeches", "stories", "tinystories", "wiki")
PARTS = {"heldout": {0}, "calibration": {10}, "train": set(range(20)) - {0, 10}}
PASSAGE_CHARS = 2000


def read_passages(text_dir: Path, domain: str, part: str) -> list[str]:
    """Return the passages of one domain that belong to `part` (a key of PARTS), in reading order."""
    with gzip.open(text_dir / f"{domain}.txt.gz", "rt", encoding="utf-8") as file:
        documents = file.read().rstrip("\n").split("\n<|endoftext|>\n")
    passages = [passage for document in documents for passage in cut(document)]
    return [passage for i, passage in enumerate(passages) if i % 20 in PARTS[part]]


def cut(document: str) -> Iterator[str]:
    """Cut a document at blank lines into passages of at least PASSAGE_CHARS characters; the last may be shorter."""
    passage: list[str] = []
    for paragraph in document.split("\n\n"):
        passage.append(paragraph)
        if sum(map(len, passage)) >= PASSAGE_CHARS:
            yield "\n\n".join(passage)
            passage = []
    if any(passage):
        yield "\n\n".join(passage)
