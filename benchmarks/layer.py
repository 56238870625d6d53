"""Tell where the time of one layer's solve goes, from its HDF5 file to merged safetensors.

python benchmarks/layer.py [--methods mergemoe routed select] [--width qwen1.5-moe] [--groups 2] [--tokens 4096]
python benchmarks/layer.py table      # reads benchmarks/results/layer.json

Groups of two experts; a token chooses K of them in the share that they have of the whole layer, but at least one.
Products are matrix products: their seconds, and the share of this machine's own rate (machine.py) at which they ran, by
dtype. The rest is decompositions, reading and writing files with their digests, and everything else. One thread.
"""

import argparse
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import kept_rows  # noqa: E402
import machine  # noqa: E402
import torch  # noqa: E402
import widths  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mergemoe.artifacts import store  # noqa: E402
from mergemoe.calibration.activation_file import Reader, Writer  # noqa: E402
from mergemoe.merging.solve import solve  # noqa: E402
from mergemoe.methods import catalogue  # noqa: E402
from mergemoe.moe.expert_forward import Activation  # noqa: E402
from mergemoe.moe.tokens import Remembered  # noqa: E402

MADE = {"stage": "solve", "inputs": {}, "code": "benchmark"}
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")
DECOMPOSITIONS = ("linalg", "cholesky")
SILU = Activation("silu")


class Clock(TorchDispatchMode):
    """Seconds of matrix products and decompositions, and the operations of the products by dtype."""

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


def measure(method: str, width: widths.Width, tokens: int, groups: int) -> dict[str, Any]:
    """Return the seconds of one solve by what they were spent on."""
    used = width._replace(experts=2 * groups, top_k=max(1, round(width.top_k * 2 * groups / width.experts)))
    experts, rows = widths.random_experts(used), widths.random_tokens(used, tokens, held=0.1)
    usage = torch.bincount(rows.rows["expert_index"].flatten().long(), minlength=used.experts).tolist()
    options = {name: option.default for name, option in catalogue.METHODS[method].options.items()}
    options = {name: value for name, value in catalogue.complete(method, options).items() if value is not None}
    rates = {f"torch.{name}": machine.product_rate(getattr(torch, name)) for name in ("float32", "float64")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results/layer_000.h5")
        path.parent.mkdir()
        write_capture(path, rows)
        with machine.Peak() as peak, Clock() as clock:
            start = time.perf_counter()
            with clock.timed("files", Reader)(path) as reader:
                reader.read = clock.timed("files", reader.read)
                places = [j // 2 for j in range(used.experts)]
                tensors, record = solve(experts, places, usage, reader, SILU, method=method, **options)
            clock.timed("files", store.write_tensors)(path.with_suffix(".safetensors"), tensors, MADE)
            seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "products": {name: clock.seconds[name] for name in rates},
        "rates": {name: clock.operations[name] / rates[name] / clock.seconds[name] for name in rates},
        "decompositions": clock.seconds["decompositions"],
        "files": clock.seconds["files"],
        "peak_bytes": peak.bytes,
        "output_error": record["output_error"],
    }


def write_capture(path: Path, tokens: Remembered) -> None:
    """Write tokens as the stage capture does."""
    sequence = tokens.rows["sequence"].long()
    held = torch.zeros(int(sequence[-1]) + 1, dtype=torch.bool).index_put_((sequence,), tokens.held)
    writer = Writer(path, held)
    writer.append(**tokens.rows)
    writer.close({**MADE, "layer": 0})


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    head = ["method", "layer, tokens", "s", "float32 products", "float64 products", "of the rate"]
    head += ["decompositions", "files", "other", "MB"]
    lines: list[list[str]] = []
    for row in rows:
        products, rates = row["products"].values(), row["rates"].values()
        other = row["seconds"] - sum(products) - row["decompositions"] - row["files"]
        cells = [
            row["method"],
            f"{row['groups']} groups of {row['width']}, {row['tokens']:,}",
            f"{row['seconds']:.1f}",
            *(f"{seconds:.1f}" for seconds in products),
            " and ".join(f"{rate:.0%}" for rate in rates),
            *(f"{seconds:.1f}" for seconds in (row["decompositions"], row["files"], other)),
            f"{row['peak_bytes'] / 1e6:,.0f}",
        ]
        lines.append(cells)
    return kept_rows.markdown(head, lines)


def main() -> None:
    """Read the command line; measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=["measure", "table"])
    parser.add_argument("--methods", nargs="+", default=["mergemoe", "routed", "select"], choices=catalogue.METHODS)
    parser.add_argument("--width", default="qwen1.5-moe", choices=widths.WIDTHS)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for method in args.methods if args.what == "measure" else []:
        row = {"method": method, "width": args.width, "groups": args.groups, "tokens": args.tokens}
        row |= {"machine": machine.describe()}
        kept_rows.keep("layer", row, measure(method, widths.WIDTHS[args.width], args.tokens, args.groups))
    print(table(kept_rows.read("layer")))


if __name__ == "__main__":
    main()
