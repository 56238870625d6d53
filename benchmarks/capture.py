"""Compare the capture with the plain forward of transformers, at the width of Qwen3-30B-A3B: speed, memory, bytes.

python benchmarks/capture.py [--layers 3] [--experts 32] [--tokens 4096] [--batch 2048] [--repeat 5] [--dtype float32]
python benchmarks/capture.py table      # reads benchmarks/results/capture.json

capture      the pass of stages/capture.py: loads a layer, runs it over all batches, writes its HDF5 file, frees it
plain        model(ids, use_cache=False) of the model loaded whole, with the kernel that transformers chooses
plain eager  the same with the kernel eager, which the capture uses

The checkpoint is random, in bfloat16. Of the model's sizes the layers, the experts (not those of a token) and the
vocabulary are cut. The ways take turns in processes of their own, with one thread. Loading the model counts for
`capture` only. CPU seconds depend less on what else the machine does. Memory is above that of the imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import kept_rows  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import pairs  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, Qwen3MoeConfig  # noqa: E402

from mergemoe.artifacts import store  # noqa: E402
from mergemoe.calibration import capture as captures  # noqa: E402
from mergemoe.calibration.activation_file import Writer  # noqa: E402
from mergemoe.models.layered_model import LayeredModel  # noqa: E402
from mergemoe.models.layout import describe_layout  # noqa: E402

WAYS = ("plain", "plain eager", "capture")
LENGTH, VOCABULARY = 256, 4096
SETTINGS = ("layers", "experts", "tokens", "batch", "dtype")
PARTS = {  # what the seconds of a capture are spent on: (owner, attribute)
    "layers": (captures, "run_layer"),
    "loading": (LayeredModel, "load"),
    "freeing": (LayeredModel, "unload"),
    "writing": (Writer, "append"),
    "digests": (Writer, "close"),
    "residual": (store, "write_state"),
}


def count_parts() -> dict[str, float]:
    """Return a dictionary that collects the CPU seconds of the parts from now on."""
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, work: Any) -> Any:
        def done(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **options)
            finally:
                spent[part] += time.process_time() - start

        return done

    for part, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, timed(part, getattr(owner, attribute)))
    return spent


def tokens(args: argparse.Namespace) -> torch.Tensor:
    """Return the ids [S, L]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (args.tokens // LENGTH, LENGTH), generator=generator)


def capture(args: argparse.Namespace) -> dict[str, Any]:
    """Run the capture as its stage does."""
    ids, device, scratch = tokens(args), torch.device("cpu"), Path(tempfile.mkdtemp(dir=Path(args.folder).parent))
    layout = describe_layout(args.folder)
    spent = count_parts()
    with machine.Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        layered = LayeredModel(args.folder, getattr(torch, args.dtype), device)
        batches = captures.batches_of(ids, torch.ones_like(ids), args.batch, device)
        heldout = torch.zeros(len(ids), dtype=torch.bool)
        finished, _ = captures.capture(layered, layout, batches, heldout, scratch, {"stage": "capture"})
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    written = sum(path.stat().st_size for path in finished.values())
    return {**took, "peak_bytes": peak.bytes, "written_bytes": written, "parts": spent}


@torch.no_grad()
def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Load the model whole and run it."""
    kernel = "eager" if args.way == "plain eager" else None
    with machine.Peak() as peak:
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(
            args.folder, dtype=getattr(torch, args.dtype), experts_implementation=kernel
        ).eval()
        loaded, cpu = time.perf_counter(), time.process_time()
        for ids in tokens(args).split(args.batch // LENGTH):
            model(ids, use_cache=False)
        took = {"seconds": time.perf_counter() - loaded, "cpu_seconds": time.process_time() - cpu}
    kernel = model.config._experts_implementation
    return {**took, "load_seconds": loaded - start, "peak_bytes": peak.bytes, "kernel": kernel}


def compare(args: argparse.Namespace) -> None:
    """Write the checkpoint, run the ways in turn, keep the figures."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=args.folder) as parent:
        folder = Path(parent, "model")
        sizes = {"num_hidden_layers": args.layers, "num_experts": args.experts, "vocab_size": VOCABULARY}
        memory.write_checkpoint(folder, Qwen3MoeConfig(**memory.QWEN3_30B_A3B | sizes))
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        options = [f"--{name}={getattr(args, name)}" for name in SETTINGS]
        for turn in range(args.repeat):
            for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                command = [sys.executable, __file__, "measure", f"--folder={folder}", f"--way={way}", *options]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(way, done.stdout.splitlines()[-1], file=sys.stderr)
    row = {name: getattr(args, name) for name in SETTINGS} | {"machine": machine.describe()}
    kept_rows.keep("capture", row, {"checkpoint_bytes": stored, "ways": found})


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown: the ways, and what the capture spent its time on."""
    head = ["layers, experts, tokens", "way", "tokens/s", "of `plain`", "CPU s", "of `plain`", "of `plain eager`"]
    head += ["MB in memory", "MB written"]
    lines: list[list[str]] = []
    for row in rows:
        wall, cpu = ({way: column(row, way, key) for way in WAYS} for key in ("seconds", "cpu_seconds"))
        for way in WAYS:
            turns = row["ways"][way]
            lines.append(
                [
                    f"{row['layers']}, {row['experts']}, {row['tokens']:,}",
                    f"{way} ({turns[0]['kernel']})" if way == "plain" else way,
                    f"{row['tokens'] / statistics.median(wall[way]):,.0f}",
                    pairs.shown(pairs.ratio(wall["plain"], wall[way])),
                    f"{statistics.median(cpu[way]):.1f}",
                    *(pairs.shown(pairs.ratio(cpu[base], cpu[way])) for base in WAYS[:2]),
                    f"{max(column(row, way, 'peak_bytes')) / 1e6:,.0f}",
                    f"{turns[0].get('written_bytes', 0) / 1e6:,.0f}",
                ]
            )
    return f"{kept_rows.markdown(head, lines)}\n\n{parts_table(rows)}"


def parts_table(rows: list[kept_rows.Row]) -> str:
    """Return the CPU seconds of the captures by what they were spent on, as Markdown."""
    lines: list[list[str]] = []
    for row in rows:
        turns = row["ways"]["capture"]
        parts = [statistics.median(turn["parts"][part] for turn in turns) for part in PARTS]
        rest = statistics.median(turn["cpu_seconds"] - sum(turn["parts"].values()) for turn in turns)
        name = f"{row['layers']}, {row['experts']}, {row['tokens']:,}"
        lines.append([name, *(f"{one:.2f}" for one in (*parts, rest))])
    return kept_rows.markdown(["CPU s of `capture`", *PARTS, "other"], lines)


def column(row: kept_rows.Row, way: str, key: str) -> list[float]:
    """Return a figure of all turns of a way."""
    return [turn[key] for turn in row["ways"][way]]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare", choices=["compare", "measure", "table"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a batch")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", help="parent of the temporary folder, which takes the checkpoint and the captures")
    parser.add_argument("--way", choices=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        print(json.dumps((capture if args.way == "capture" else plain)(args)))
        return
    if args.what == "compare":
        compare(args)
    print(table(kept_rows.read("capture")))


if __name__ == "__main__":
    main()
