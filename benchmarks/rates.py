"""Tell at which share of this machine's own rate the products of a stage run, and where the rest of its time goes.

python benchmarks/rates.py [--stages capture grouping select refine] [--width qwen1.5-moe] [--experts 8] [--kept 4]
    [--tokens 8192] [--steps 50] [--threads 1]
python benchmarks/rates.py table      # reads benchmarks/results/rates.json

capture    two layers of a random model in float32; its attention is fused and counts as "other"
grouping   by selection with the quick search, from the captured tokens to the groups
select     the joint solve of the best neurons of groups of neighbours
refine     so many steps from that solve, its errors before and after included

The layers and tokens are those of layer.py; grouping, select and refine read a capture of their own on disk.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import layer  # first: it sets MKL's code path and thread counts before torch is imported

# isort: split
import kept_rows
import machine
import memory
import torch
import widths
from clock import Clock
from layer_tables import chosen
from torch import Tensor
from transformers import Qwen3MoeConfig

from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.grouping.cluster import group_experts
from mergemoe.merging.solve import solve
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layout import describe_layout
from mergemoe.moe.problem import Problem
from mergemoe.reconstruction.options import LAYER
from mergemoe.reconstruction.refine import refine

STAGES = ("capture", "grouping", "select", "refine")
LENGTH, BATCH = 256, 2048


def clocked(work: Callable[[Clock], Any]) -> dict[str, Any]:
    """Run a piece of work under a clock; return its figures."""
    rates = machine.product_rates()
    with machine.Peak() as peak, Clock() as clock:
        start = time.perf_counter()
        work(clock)
        seconds = time.perf_counter() - start
    rates = machine.faster(rates, machine.product_rates())
    products = {name: clock.seconds[name] for name in rates}
    return {
        "seconds": seconds,
        "products": products,
        "rates": {name: clock.operations[name] / rates[name] / max(products[name], 1e-9) for name in rates},
        "decompositions": clock.seconds["decompositions"],
        "files": clock.seconds["files"],
        "peak_bytes": peak.bytes,
    }


def capture_layers(used: widths.Width, tokens: int, folder: Path) -> Callable[[Clock], Any]:
    """Return the pass of the stage capture over a random checkpoint of two layers."""
    sizes = {
        "hidden_size": used.hidden,
        "moe_intermediate_size": used.inner,
        "num_experts": used.experts,
        "num_experts_per_tok": used.top_k,
        "num_hidden_layers": 2,
        "vocab_size": 4096,
    }
    memory.write_checkpoint(folder / "model", Qwen3MoeConfig(**memory.QWEN3_30B_A3B | sizes))
    layout = describe_layout(str(folder / "model"))
    ids = torch.randint(3, 4096, (tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))

    def work(_: Clock) -> None:
        device = torch.device("cpu")
        layered = LayeredModel(str(folder / "model"), torch.float32, device)
        heldout = torch.zeros(len(ids), dtype=torch.bool)
        batches = batches_of(ids, torch.ones_like(ids), BATCH, device)
        capture(layered, layout, batches, heldout, folder / "scratch", {"stage": "capture"})

    return work


def measure(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return where the time of a stage goes."""
    used = widths.part(args.width, args.experts)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        if stage == "capture":
            return clocked(capture_layers(used, args.tokens, folder))
        experts, rows = widths.random_experts(used), widths.random_tokens(used, args.tokens, held=0.1)
        usage = torch.bincount(rows.rows["expert_index"].flatten().long(), minlength=used.experts).tolist()
        (folder / "results").mkdir()
        layer.write_capture(folder / "results" / "layer_000.h5", rows)
        reader = opened.enter_context(Reader(folder / "results" / "layer_000.h5"))
        places = [j * args.kept // used.experts for j in range(used.experts)]

        def solved() -> Any:
            return solve(experts, places, usage, reader, layer.SILU, method="select", **chosen("select"))[0]

        def grouping() -> None:
            problem = Problem(experts.map(Tensor.float), [], reader, layer.SILU)
            profiled: Any = {"usage": usage}
            group_experts("selection", args.kept, problem, profiled, used.inner, search="quick")

        start = solved() if stage == "refine" else {}
        settings = {key: option.default for key, option in LAYER.items()} | {"steps": args.steps}
        work: dict[str, Callable[[], Any]] = {
            "grouping": grouping,
            "select": solved,
            "refine": lambda: refine(experts, start, reader, layer.SILU, scratch=folder, **settings),
        }

        def timed(clock: Clock) -> None:
            reader.read = clock.timed("files", reader.read)
            work[stage]()

        return clocked(timed)


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown."""
    head = ["processor", "stage", "layer", "tokens", "s", "float32 products", "float64 products", "of the rate"]
    head += ["decompositions", "files", "other", "MB"]
    lines: list[list[str]] = []
    for row in rows:
        products, rates = row["products"].values(), row["rates"].values()
        other = row["seconds"] - sum(products) - row["decompositions"] - row["files"]
        shown = [f"{rate:.0%}" for rate, seconds in zip(rates, products, strict=True) if seconds >= 0.05]
        lines.append(
            [
                row["machine"]["processor"],
                row["stage"] + (f", {row['steps']} steps" if row["stage"] == "refine" else ""),
                f"{row['width']} {row['experts']}→{row['kept']}",
                f"{row['tokens']:,}",
                f"{row['seconds']:,.1f}",
                *(f"{seconds:,.1f}" for seconds in products),
                " and ".join(shown),
                *(f"{seconds:,.1f}" for seconds in (row["decompositions"], row["files"], other)),
                f"{row['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    return kept_rows.markdown(head, lines)


def main() -> None:
    """Read the command line; measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=["measure", "table"])
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--width", default="qwen1.5-moe", choices=widths.WIDTHS)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--kept", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=50, help="of the refine")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {key: getattr(args, key) for key in ("width", "experts", "kept", "tokens", "steps", "threads")}
    for stage in args.stages if args.what == "measure" else ():
        kept_rows.keep("rates", {"stage": stage, **settings, "machine": machine.describe()}, measure(stage, args))
    print(table(kept_rows.read("rates")))


if __name__ == "__main__":
    main()
