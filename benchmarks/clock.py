"""A clock of matrix products, decompositions and named pieces of work."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")
DECOMPOSITIONS = ("linalg", "cholesky")


class Clock(TorchDispatchMode):
    """Seconds of products of matrices, those with vectors, and decompositions; operations of the first by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch and count it."""
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds, name = time.perf_counter() - start, func.overloadpacket.__name__
        if name in PRODUCTS:
            a, b = args[-2:]
            if 1 in (a.shape[-2], b.shape[-1]):  # with a vector: as fast as memory, whatever the processor multiplies
                self.seconds["vectors"] += seconds
                return result
            self.seconds[str(a.dtype)] += seconds
            self.operations[str(a.dtype)] += 2 * math.prod(a.shape) * b.shape[-1]
        elif any(word in name for word in DECOMPOSITIONS):
            self.seconds["decompositions"] += seconds
        return result

    def timed(self, what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose seconds are counted as `what`."""

        def done(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                self.seconds[what] += time.perf_counter() - start

        return done
