"""Report progress of long loops: a bar on a terminal, or a line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines of a log


class Progress:
    """Progress of one piece of work; call `step` after each of its `total` parts (None if the number is not known)."""

    def __init__(self, label: str, total: int | None):
        self.label, self.total, self.done = label, total, 0
        self.start = self.said = time.monotonic()
        self.bar = tqdm(desc=label, total=total, leave=False) if sys.stderr.isatty() else None

    def step(self) -> None:
        """Count one part, and report it if the last report is long enough ago."""
        self.done += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update()
            if self.done == self.total:
                self.bar.close()
        elif now - self.said >= EVERY:
            self.said = now
            print(self._line(now - self.start), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        if not self.total:
            return f"{self.label}: {self.done} done in {seconds:.0f} s"
        left = seconds / self.done * (self.total - self.done)
        return f"{self.label}: {self.done} of {self.total} ({self.done / self.total:.0%}), {left:.0f} s left"


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and report the loop's progress."""
    progress = Progress(label, len(items) if total is None and isinstance(items, Sized) else total)
    for item in items:
        yield item
        progress.step()
