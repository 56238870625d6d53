"""Paired measurements: two functions take turns, and a slow phase of the machine cancels in the ratio of a pair."""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch


def seconds(work: Callable[[], None]) -> float:
    """Return the seconds that a function takes, including the device's queue."""
    start = time.perf_counter()
    with torch.no_grad():
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(full: Callable[[], None], compact: Callable[[], None], pairs: int) -> np.ndarray:
    """Return the seconds [pairs, 2] of both functions, which take turns; a first turn of each does not count."""
    works, times = (full, compact), np.empty((pairs, 2))
    for pair in range(-1, pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            times[pair, which] = seconds(works[which])
    return times


def ratio(these: Sequence[float], those: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the ratios of paired figures and the ends of its 95% bootstrap interval."""
    ratios = np.asarray(these) / np.asarray(those)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return statistics.median(ratios.tolist()), float(low), float(high)


def shown(found: Sequence[float]) -> str:
    """Return a ratio and its interval as text."""
    middle, low, high = found
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"
