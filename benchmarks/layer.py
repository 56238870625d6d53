"""Tell where the time of one layer goes, from its HDF5 file to merged safetensors.

python benchmarks/layer.py [--methods mergemoe routed select] [--width qwen1.5-moe] [--experts 4] [--kept 2]
    [--tokens 4096] [--threads 1] [--steps N]
python benchmarks/layer.py table      # reads benchmarks/results/layer.json
python benchmarks/layer.py line       # how the seconds grow with the tokens
python benchmarks/layer.py model      # what all layers of a model would take

Groups of neighbours; a token chooses K experts in the share that these have of the whole layer, but at least one.
`--steps` also refines the solved layer by so many steps. Products are matrix products: their seconds, and the share of
this machine's own rate (machine.py) at which they ran, by dtype. The rest is
decompositions, reading and writing files with their digests, and everything else. "Counted" are the seconds that the
operations which `mergemoe plan` counts take at the rate of float32.
"""

import argparse
import itertools
import sys
import tempfile
import time
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
from clock import Clock  # noqa: E402
from layer_tables import chosen, counted, line, model, table  # noqa: E402

from mergemoe.artifacts import store  # noqa: E402
from mergemoe.calibration.activation_file import Reader, Writer  # noqa: E402
from mergemoe.merging.solve import solve  # noqa: E402
from mergemoe.methods import catalogue  # noqa: E402
from mergemoe.moe.expert_forward import Activation  # noqa: E402
from mergemoe.moe.tokens import Remembered  # noqa: E402
from mergemoe.reconstruction.options import LAYER  # noqa: E402
from mergemoe.reconstruction.refine import refine  # noqa: E402

MADE = {"stage": "solve", "inputs": {}, "code": "benchmark"}
SILU = Activation("silu")
TABLES = {"table": table, "line": line, "model": model}


def measure(method: str, tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of one layer by what they were spent on."""
    used = widths.part(args.width, args.experts)
    experts = widths.random_experts(used)
    rows = widths.random_tokens(used, tokens, held=0.1)
    usage = torch.bincount(rows.rows["expert_index"].flatten().long(), minlength=used.experts).tolist()
    options = chosen(method)
    rates = machine.product_rates()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results/layer_000.h5")
        path.parent.mkdir()
        write_capture(path, rows)
        del rows
        with machine.Peak() as peak, Clock() as clock:
            start = time.perf_counter()
            with clock.timed("files", Reader)(path) as reader:
                reader.read = clock.timed("files", reader.read)
                places = [j * args.kept // used.experts for j in range(used.experts)]
                tensors, record = solve(experts, places, usage, reader, SILU, method=method, **options)
                errors, middle = dict(record["output_error"]), time.perf_counter()
                if args.steps:
                    settings = {name: option.default for name, option in LAYER.items()} | {"steps": args.steps}
                    tensors, refined = refine(experts, tensors, reader, SILU, scratch=Path(folder), **settings)
                    errors = dict(refined["output_error"])
                refining = time.perf_counter() - middle
            clock.timed("files", store.write_tensors)(path.with_suffix(".safetensors"), tensors, MADE)
            seconds = time.perf_counter() - start
    rates = machine.faster(rates, machine.product_rates())
    operations = counted({**vars(args), "method": method, "tokens": tokens})
    return {
        "seconds": seconds,
        "refine_seconds": refining if args.steps else None,
        "products": {name: clock.seconds[name] for name in rates},
        "rates": {name: clock.operations[name] / rates[name] / max(clock.seconds[name], 1e-9) for name in rates},
        "decompositions": clock.seconds["decompositions"],
        "files": clock.seconds["files"],
        "counted_seconds": operations / rates["torch.float32"],
        "peak_bytes": peak.bytes,
        "output_error": errors,
    }


def write_capture(path: Path, tokens: Remembered) -> None:
    """Write tokens as the stage capture does."""
    sequence = tokens.rows["sequence"].long()
    held = torch.zeros(int(sequence[-1]) + 1, dtype=torch.bool).index_put_((sequence,), tokens.held)
    writer = Writer(path, held)
    writer.append(**tokens.rows)
    writer.close({**MADE, "layer": 0})


def main() -> None:
    """Read the command line; measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=["measure", *TABLES])
    parser.add_argument("--methods", nargs="+", default=["mergemoe", "routed", "select"], choices=catalogue.METHODS)
    parser.add_argument("--width", default="qwen1.5-moe", choices=widths.WIDTHS)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--kept", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="of a refine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {key: getattr(args, key) for key in ("width", "experts", "kept", "threads", "steps")}
    for method, tokens in itertools.product(args.methods, args.tokens) if args.what == "measure" else ():
        row = {"method": method, "tokens": tokens, **settings, "machine": machine.describe()}
        kept_rows.keep("layer", row, measure(method, tokens, args))
    print(TABLES.get(args.what, table)(kept_rows.read("layer")))


if __name__ == "__main__":
    main()
