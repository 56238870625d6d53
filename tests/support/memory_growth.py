"""How far this process's anonymous memory rises while something works."""

import os
import threading
from collections.abc import Callable

from benchmarks.memory import anonymous


def memory_growth(work: Callable[[], object]) -> int:
    """Return the bytes between what is held before the work and its highest moment."""
    done, seen = threading.Event(), [anonymous(os.getpid())]

    def watch():
        while not done.wait(0.002):
            seen.append(anonymous(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(seen) - seen[0]
