"""This machine: its processor, the rate of its matrix products, and the peak of a process's memory."""

import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from mergemoe.environment import describe_environment

SIDE = 1408  # of a product whose rate is measured
STATUS = Path("/proc/self/status")


def describe() -> dict[str, Any]:
    """Return the processor and the version of torch."""
    found = describe_environment()
    return {"processor": found["processor"], "system": platform.machine(), "torch": found["packages"]["torch"]}


def product_rate(dtype: torch.dtype, repeat: int = 7) -> float:
    """Return the operations per second of the fastest of a few matrix products, with the threads that are set."""
    a, b = (torch.randn(4096, SIDE).to(dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        torch.matmul(a.T, b)
        seconds.append(time.perf_counter() - start)
    return 2 * 4096 * SIDE**2 / min(seconds)


def product_rates() -> dict[str, float]:
    """Return the rate of both dtypes that a solve computes in."""
    return {str(dtype): product_rate(dtype) for dtype in (torch.float32, torch.float64)}


def faster(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the larger rate of each dtype: what else a machine does makes it slower, and nothing makes it faster."""
    return {name: max(before[name], after[name]) for name in before}


class Peak:
    """The largest resident memory of a block of code, above what there was before it (Linux)."""

    bytes = 0

    def __enter__(self) -> "Peak":
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._before = _kilobytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        """Read the peak."""
        self.bytes = 1024 * (_kilobytes("VmHWM") - self._before)


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return int(found[1])
