"""Progress of long loops: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines of a log


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, saying how far the loop is and how long it will go on."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, leave=False)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said >= EVERY and done:
            left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
            print(f"{label}: {done}/{total or '?'}{f' ({done / total:.0%})' if total else ''}{left}", file=sys.stderr)
            sys.stderr.flush()
            said = now
        yield item
