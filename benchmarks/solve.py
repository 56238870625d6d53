"""Compare ways to solve `mergemoe`'s least squares at real widths: time, memory, and the error against float64.

python benchmarks/solve.py [--width qwen1.5-moe] [--groups 2] [--tokens 8192 16384] [--repeat 5] [--threads 1]
python benchmarks/solve.py table      # reads benchmarks/results/solve.json

literal     Q and P of a group in full, T1 = Q P^+ with numpy's pinv in float32 (arXiv 2510.14436, eqs. 5, 6)
literal64   the same in float64
gram        sums of P P^T and Y P^T over all tokens in numpy, in float64, then pinv
ours        mergemoe/methods/mergemoe.py

Each group has two experts. The ways take turns in processes of their own, whose peak of memory is counted above what
the layer and its tokens take. The seconds of the arithmetic are those of the products that `ours` needs per token, at
the rate of the same thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import kept_rows  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import widths  # noqa: E402

from mergemoe.methods import mergemoe  # noqa: E402
from mergemoe.moe import expert_forward  # noqa: E402
from mergemoe.moe.expert_forward import Activation  # noqa: E402
from mergemoe.moe.problem import Group, Problem, groups_of  # noqa: E402

SILU = Activation("silu")
Way = Callable[[Problem], np.ndarray]


def literal(problem: Problem, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return the down-projections [G, H, I] by the paper's formula."""
    (tokens,) = problem.reader.chunks(rows=1 << 30)
    x = tokens.hidden.to(dtype)
    downs: list[np.ndarray] = []
    for group in problem.groups:
        mean = problem.experts[group.members].map(group.mean)
        p = expert_forward.features(x, mean, 0, SILU).T.numpy()
        q = np.concatenate([expert_forward.features(x, problem.experts, j, SILU).T.numpy() for j in group.members])
        weighted = [w * problem.experts.down[j].to(dtype).numpy() for w, j in weights(group)]
        downs.append((np.concatenate(weighted, 1) @ (q @ np.linalg.pinv(p))).astype(np.float64))
    return np.stack(downs)


def weights(group: Group) -> Iterator[tuple[float, int]]:
    """Yield the weight and the number of each member."""
    return zip(group.weights.tolist(), group.members, strict=True)


def gram(problem: Problem) -> np.ndarray:
    """Return the same from sums over chunks of tokens."""
    downs: list[np.ndarray] = []
    for group in problem.groups:
        mean = problem.experts[group.members].map(group.mean)
        squares, products = np.zeros((mean.up.shape[1],) * 2), np.zeros(mean.down.shape[1:])
        for tokens in problem.reader.chunks():
            x = tokens.hidden
            p = expert_forward.features(x, mean.map(lambda part: part.float()), 0, SILU).double().numpy()
            y = np.zeros((len(x), mean.down.shape[1]))
            for w, j in weights(group):
                y += w * expert_forward.output(x, problem.experts, j, SILU).numpy()
            squares += p.T @ p
            products += y.T @ p
        downs.append(products @ np.linalg.pinv(squares, hermitian=True))
    return np.stack(downs)


def ours(problem: Problem) -> np.ndarray:
    """Return the same by the method."""
    return np.stack([merged.expert.down[0].numpy() for merged in mergemoe.merge(problem, ridge=0.0)])


WAYS: dict[str, Way] = {
    "literal": literal,
    "literal64": lambda problem: literal(problem, torch.float64),
    "gram": gram,
    "ours": ours,
}


def arithmetic(width: widths.Width, tokens: int, groups: int) -> dict[str, float]:
    """Return the operations of `ours` by dtype: features of two experts and two H_j P^T, and half of P P^T."""
    features, square = 4 * width.hidden * width.inner, 2 * width.inner**2
    return {"float32": groups * tokens * (2 * features + 2 * square), "float64": groups * tokens * square / 2}


def measure(args: argparse.Namespace) -> None:
    """Run one way in this process; print its figures as JSON and write its down-projections."""
    torch.set_num_threads(args.threads)
    width = widths.WIDTHS[args.width]._replace(experts=2 * args.groups, top_k=min(2, 2 * args.groups))
    experts = widths.random_experts(width)
    reader = widths.random_tokens(width, args.tokens[0], held=0.0)
    usage = [reader.count()] * width.experts
    working = experts.map(lambda part: part.float())
    problem = Problem(working, groups_of([j // 2 for j in range(width.experts)], usage), reader, SILU)
    rates = {name: machine.product_rate(getattr(torch, name)) for name in ("float32", "float64")}
    with machine.Peak() as peak:
        start = time.perf_counter()
        downs = WAYS[args.way](problem)
        seconds = time.perf_counter() - start
    np.save(args.out, downs)
    counted = arithmetic(width, reader.count(), args.groups)
    needed = sum(counted[name] / rates[name] for name in rates)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak.bytes, "needed_seconds": needed, "rates": rates}))


def compare(args: argparse.Namespace) -> None:
    """Run all ways in turn, keep the figures, print the table."""
    for tokens in args.tokens:
        settings = {"width": args.width, "groups": args.groups, "tokens": tokens, "threads": args.threads}
        figures: dict[str, Any] = {}
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(args.repeat):
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    out = Path(folder, f"{way}.npy")
                    command = ["measure", "--width", args.width, "--groups", args.groups, "--tokens", tokens]
                    command += ["--threads", args.threads, "--way", way, "--out", out]
                    done = subprocess.run(
                        [sys.executable, __file__, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
                    )
                    found[way].append(json.loads(done.stdout))
                    print(way, tokens, done.stdout.strip(), file=sys.stderr)
            exact = np.load(Path(folder, "literal64.npy"))
            for way in WAYS:
                down = np.load(Path(folder, f"{way}.npy"))
                figures[way] = {
                    "seconds": [one["seconds"] for one in found[way]],
                    "needed_seconds": [one["needed_seconds"] for one in found[way]],
                    "peak_bytes": max(one["peak_bytes"] for one in found[way]),
                    "error": float(np.linalg.norm(down - exact) / np.linalg.norm(exact)),
                }
        kept_rows.keep("solve", settings | {"machine": machine.describe()}, figures)
    print(table(kept_rows.read("solve")))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    head = ["processor", "layer, tokens", "way", "s", "`literal` / this", "this / arithmetic", "MB", "error"]
    lines: list[list[str]] = []
    for row in rows:
        for way in WAYS:
            one = row[way]
            cells = [
                row["machine"]["processor"],
                f"{row['groups']} groups of {row['width']}, {row['tokens']:,}",
                way,
                f"{statistics.median(one['seconds']):.1f}",
                f"{ratio(row['literal']['seconds'], one['seconds']):.2f}",
                f"{ratio(one['seconds'], one['needed_seconds']):.2f}",
                f"{one['peak_bytes'] / 1e6:,.0f}",
                f"{one['error']:.1e}",
            ]
            lines.append(cells)
    return kept_rows.markdown(head, lines)


def ratio(these: list[float], those: list[float]) -> float:
    """Return the median of the ratios of paired seconds."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare", choices=["compare", "measure", "table"])
    parser.add_argument("--width", default="qwen1.5-moe", choices=widths.WIDTHS)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.what == "table":
        print(table(kept_rows.read("solve")))
    else:
        (measure if args.what == "measure" else compare)(args)


if __name__ == "__main__":
    main()
