"""Compare a compressed checkpoint with the full one: load time, memory, prefill speed and decode speed.

python benchmarks/speed.py FULL COMPACT [--pairs 60] [--threads 1] [--out benchmarks/speed.json]

Both models run in one process with one kernel. They take turns, and the order changes from pair to pair. So a slow
phase of the machine slows both and cancels in the ratio of a pair. The median ratio has a 95% bootstrap interval over
the pairs. Load time and peak memory are measured in new processes, also in turns.
"""

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from pairs import paired, ratio, seconds  # noqa: E402

from mergemoe.compressed.loading import load  # noqa: E402

PROMPT, NEW, BATCH = 256, 32, 4  # tokens of a prefill; tokens decoded after a prompt of 16; sequences of both


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Set the threads and return the arguments for loading either model."""
    torch.set_num_threads(args.threads)
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device
    return {"device": "cpu" if device == "auto" else device, "dtype": getattr(torch, args.dtype)}


@torch.no_grad()
def prefill(model: Any) -> Callable[[], None]:
    """Return a function that runs `BATCH` prompts of `PROMPT` tokens through the model."""
    ids = _tokens(model, PROMPT)
    return lambda: model(ids, use_cache=False)


@torch.no_grad()
def decode(model: Any) -> Callable[[], None]:
    """Return a function that generates `NEW` tokens after each of `BATCH` prompts, with a cache."""
    ids = _tokens(model, 16)
    return lambda: model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )


def _tokens(model: Any, length: int) -> torch.Tensor:
    drawn = torch.randint(3, model.config.vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(0))
    return drawn.to(model.device)


def summary(times: np.ndarray, tokens: int) -> dict[str, Any]:
    """Return the tokens per second of both, and the median ratio of their speeds with its 95% bootstrap interval."""
    speeds = tokens / times
    middle, low, high = ratio(times[:, 0], times[:, 1])
    spread = {name: np.quantile(speeds[:, i], [0.25, 0.5, 0.75]).tolist() for i, name in enumerate(("full", "compact"))}
    return {"tokens_per_second": spread, "ratio": middle, "interval": [low, high]}


def fresh(args: argparse.Namespace, path: str) -> dict[str, float]:
    """Return the load time and peak memory of a new process that only loads the model and reads one prompt."""
    command = [sys.executable, __file__, path, path, "--only-load", "--threads", str(args.threads)]
    command += ["--dtype", args.dtype, "--device", args.device]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def loaded(args: argparse.Namespace) -> dict[str, float]:
    """Load one model and read one prompt; return the seconds of the load and the peak memory in bytes."""
    start = time.perf_counter()
    model = load(args.full, **settings(args))
    took = time.perf_counter() - start
    seconds(prefill(model))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": took, "bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return the machine and the versions that the figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", cpu, re.MULTILINE))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": fields or platform.processor(),
        "gpu": gpu,
        "torch": torch.__version__,
        "threads": args.threads,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    names = {"full": args.full, "compact": args.compact}
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(args.loads):
        for name in names if turn % 2 else reversed(names):
            starts[name].append(fresh(args, names[name]))
    models = {name: load(path, **settings(args)) for name, path in names.items()}
    kernels = {model.config._experts_implementation for model in models.values()}
    assert len(kernels) == 1, f"not one kernel: {kernels}"
    works = {"prefill": (prefill, BATCH * PROMPT), "decode": (decode, BATCH * NEW)}
    figures = {
        name: summary(paired(make(models["full"]), make(models["compact"]), args.pairs), tokens)
        for name, (make, tokens) in works.items()
    }
    return {
        "what": {**names, "dtype": args.dtype, "kernel": kernels.pop(), "pairs": args.pairs, "loads": args.loads},
        "machine": machine(args),
        "load_seconds": {name: _spread(each, "seconds") for name, each in starts.items()},
        "peak_bytes": {name: _spread(each, "bytes") for name, each in starts.items()},
        **figures,
    }


def _spread(each: Sequence[dict[str, float]], key: str) -> dict[str, float]:
    values = [one[key] for one in each]
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def table(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    rows = []
    for key, unit, scale in (("load_seconds", "s", 1.0), ("peak_bytes", "MB", 1e-6)):
        texts = [
            f"{name} {scale * one['median']:.4g} ({scale * one['min']:.4g}–{scale * one['max']:.4g}) {unit}"
            for name, one in found[key].items()
        ]
        rows.append(f"{key.partition('_')[0]:<8} {', '.join(texts)}")
    for key in ("prefill", "decode"):
        texts = [
            f"{name} {middle:,.0f} ({low:,.0f}–{high:,.0f})"
            for name, (low, middle, high) in found[key]["tokens_per_second"].items()
        ]
        median = f"{found[key]['ratio']:.3f}, 95% {found[key]['interval'][0]:.3f}–{found[key]['interval'][1]:.3f}"
        rows.append(f"{key:<8} {', '.join(texts)} tokens/s; compact/full {median}")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", help="a checkpoint folder")
    parser.add_argument("compact", help="a compressed checkpoint with the same experts kernel")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speed.json")
    parser.add_argument("--only-load", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_load:
        print(json.dumps(loaded(args)))
        return
    found = measure(args)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
