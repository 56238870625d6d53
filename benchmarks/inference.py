"""Compare a compressed MoE layer of Qwen3-30B-A3B's width with the full one and with a stock layer of half the experts.

python benchmarks/inference.py [--kernels eager grouped_mm batched_mm] [--pairs 9] [--dtype float32]
python benchmarks/inference.py table      # reads benchmarks/results/inference.json

full      the layer's router and its 128 experts (H 2048, I 768, 8 experts per token)
compact   the same router, and 64 experts behind a map of random groups
stock     a router of 64 rows and 64 experts

Weights and hidden states are random, so that the choices are nearly uniform. Prefill is one call on prompts of 64
tokens; decode is calls on one token of each sequence, 32 tokens in all. batched_mm copies the weights for each choice,
19 MB, so it only decodes. The full layer and another take turns in one process, with one thread; a ratio has a 95%
bootstrap interval.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import deduplicate  # noqa: E402
import kept_rows  # noqa: E402
import machine  # noqa: E402
import pairs  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen3MoeConfig  # noqa: E402
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock  # noqa: E402

N, K, H, WIDTH = deduplicate.N, deduplicate.K, deduplicate.H, deduplicate.WIDTH
PROMPT, NEW = 64, 32  # tokens of a prompt; tokens that all sequences decode together
KERNELS = ("eager", "grouped_mm", "batched_mm")
PHASES = {"prefill": ("eager", "grouped_mm"), "decode": KERNELS}  # and the kernels that have it
BATCHES = (1, 16)


def layer(experts: int, dtype: torch.dtype) -> Any:
    """Return a stock MoE layer with random weights."""
    config = Qwen3MoeConfig(
        hidden_size=H, moe_intermediate_size=WIDTH, num_experts=experts, num_experts_per_tok=K, norm_topk_prob=True
    )
    config._experts_implementation = "eager"
    with torch.device("meta"):
        module = Qwen3MoeSparseMoeBlock(config)
    module = module.to_empty(device="cpu").to(dtype)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return module


def layers(dtype: torch.dtype) -> dict[str, Any]:
    """Return the three layers; that of `compact` has the router of `full`."""
    full, compact, stock = layer(N, dtype), layer(1, dtype), layer(N // 2, dtype)
    compact.gate, compact.experts = full.gate, deduplicate.merged(N // 2, dtype, "cpu", deduplicate=False)
    return {"full": full, "compact": compact, "stock": stock}


def work(module: Any, phase: str, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that reads prompts or decodes."""
    shape = (1, batch, PROMPT, H) if phase == "prefill" else (NEW // batch, batch, 1, H)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def run() -> None:
        for states in hidden:
            module(states)

    return run


def measure(kernel: str, args: argparse.Namespace, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the paired seconds of a kernel, per phase, batch and smaller layer."""
    for module in made.values():
        module.experts.config._experts_implementation = kernel
    found: list[dict[str, Any]] = []
    for (phase, kernels), batch in itertools.product(PHASES.items(), BATCHES):
        for other in ("compact", "stock") if kernel in kernels else ():
            works = [work(made[name], phase, batch, getattr(torch, args.dtype)) for name in ("full", other)]
            full, seconds = pairs.paired(*works, args.pairs).T.tolist()
            found.append({"phase": phase, "batch": batch, "layer": other, "full": full, "seconds": seconds})
            print(kernel, phase, batch, other, pairs.shown(pairs.ratio(seconds, full)), file=sys.stderr)
    return found


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown."""
    head = ["kernel", "phase", "batch", "full, ms", "compact / full", "stock / full"]
    lines: list[list[str]] = []
    for row in rows:
        for one, other in zip(row["figures"][::2], row["figures"][1::2], strict=True):
            lines.append(
                [
                    row["kernel"],
                    one["phase"],
                    str(one["batch"]),
                    f"{1000 * statistics.median(one['full'] + other['full']):,.0f}",
                    *(pairs.shown(pairs.ratio(each["seconds"], each["full"])) for each in (one, other)),
                ]
            )
    return kept_rows.markdown(head, lines)


def main() -> None:
    """Read the command line; measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=["measure", "table"])
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        made = layers(getattr(torch, args.dtype))
        for kernel in args.kernels:
            row = {"kernel": kernel, "dtype": args.dtype, "machine": machine.describe()}
            kept_rows.keep("inference", row, {"figures": measure(kernel, args, made)})
    print(table(kept_rows.read("inference")))


if __name__ == "__main__":
    main()
