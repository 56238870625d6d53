"""Compare merging, quantizing and both at equal bytes: write a piece's params.yaml, print the tables, draw the picture.

python benchmarks/frontier.py left PIECE             # prints the seeds that are not measured yet
python benchmarks/frontier.py params PIECE SEED      # snakemake --cores all --configfile FILE
python benchmarks/frontier.py keep PIECE             # adds results/metrics.json to benchmarks/frontier/MODEL.json
python benchmarks/frontier.py table                  # reads these files
python benchmarks/frontier.py picture MODEL FILE.svg

`make bench-frontier PIECES="demo_select_50 ..."` does all. A piece is a model, a method and the share of the routed
weights that it keeps, without and with a refine, each at 16 and fewer bits; `full` keeps all experts. A seed takes 40
minutes of one core.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # also when a test loads this file
import envelope
import methods
import pieces

from mergemoe.report.score_plots import lower_envelope

FOLDER = Path(__file__).with_suffix("")
METHODS = ("reap", "folded", "slim", "select")
FULL = "full"  # all experts, none changed
REST = {"8": "Q8_0", "6": "Q8_0"}  # of the other matrices; of fewer bits
REST_OF_FEW = "Q5_1"
QUANTIZE: dict[str, dict[str, Any]] = {
    "8": {"by": "round", "format": "Q8_0"},
    "6": {"by": "gptq", "bits": 6},
    "5": {"by": "gptq", "bits": 5},
    "4": {"by": "gptq", "bits": 4},
    "3": {"by": "descent", "bits": 3},
    "2.5": {"by": "descent", "bits": 2.5},
    "2": {"by": "descent", "bits": 2},
}
CALIBRATE = {**methods.MIXED, "samples": 512}
PIECES = {f"{model}_{FULL}_100": (model, FULL, "100") for model in ("demo", "shared")} | {
    f"{model}_{method}_{share}": (model, method, share)
    for model in ("demo", "shared")
    for share in methods.SHARES
    for method in METHODS
}
KL, PERPLEXITY, BLIMP, BYTES = "fidelity/kl", "fidelity/perplexity", "blimp/acc", "cost/bytes"


class Point(NamedTuple):
    """The means of one combination over its seeds."""

    method: str
    share: str
    bits: str  # of a weight of an expert; 16: as they are stored
    bytes: float
    kl: float
    perplexity: float
    blimp: float
    seeds: int

    @property
    def line(self) -> str:
        """Return the name of the combinations that differ by their bits alone."""
        return self.method if self.method == FULL else f"{self.method}, {self.share}%"


def params(piece: str, seed: int) -> dict[str, Any]:
    """Return the params.yaml of one calibration seed of a piece."""
    model, method, share = PIECES[piece]
    kept = [] if method == FULL else [method]
    tasks = {"blimp": {"include": "data/blimp"}}
    refine = {"tuned": {"by": "layer"}}
    chosen = {"model": f"data/{model}-moe", "calibrate": CALIBRATE, "shares": [share], "methods": kept, "tasks": tasks}
    made = methods.params_of({**chosen, "refine": refine, "seeds": [seed]})
    if method == FULL:
        (calibrate,) = made["calibrate"]
        made["cluster"], made["solve"] = {"all": {"by": "weights", "experts": 1.0}}, {"average": {"method": "average"}}
        made["refine"], made["runs"] = {}, [[model, calibrate, "all", "average"]]
    made["quantize"] = {_name(bits): {**how, "rest": REST.get(bits, REST_OF_FEW)} for bits, how in QUANTIZE.items()}
    plain = [[*run, None][:5] for run in made["runs"]]
    made["runs"] = [[*run, name] for run in plain for name in (None, *made["quantize"])]
    return made


def _name(bits: str) -> str:
    """Return the name of a choice of `quantize`, which may have no dot."""
    return f"q{bits.replace('.', '_')}"


def left(piece: str) -> list[int]:
    """Return the calibration seeds of a piece that its model's file does not have with all bits."""
    model, method, share = PIECES[piece]
    there = {(run.method, run.share, run.bits, seed) for run, seed in _runs(_kept(model))}
    return [seed for seed in methods.SEEDS if any((method, share, bits, seed) not in there for bits in QUANTIZE)]


def keep(piece: str, project: Path = Path()) -> None:
    """Add the runs of results/metrics.json to a model's file."""
    model = PIECES[piece][0]
    found = json.loads((project / "results/metrics.json").read_text())[model]
    found["runs"] = _kept(model)["runs"] | found["runs"]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{model}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def _kept(model: str) -> dict[str, Any]:
    path = FOLDER / f"{model}.json"
    return json.loads(path.read_text()) if path.is_file() else {"full": {}, "runs": {}}


def _runs(found: dict[str, Any]) -> Iterator[tuple[Point, int]]:
    """Yield each run as a point of one seed, with the seed."""
    for name, scores in found["runs"].items():
        calibrate, cluster, last = name.split("/")
        fitted, _, bits = last.partition("@q")
        solve, plus, refine = fitted.partition("+")
        method, share = solve.rsplit("_", 1) if cluster == "none" else (solve, cluster.rpartition("_")[2])
        method = FULL if cluster == "all" else method + plus + refine
        scored = (scores[BYTES], scores[KL], scores[PERPLEXITY], scores[BLIMP])
        bits = bits.replace("_", ".") or "16"
        yield Point(method, "100" if cluster == "all" else share, bits, *scored, 1), int(calibrate[-1])


def points(model: str) -> list[Point]:
    """Return the combinations of a model, each as the mean over its seeds, the largest first."""
    seeds: dict[tuple[str, str, str], list[Point]] = {}
    for point, _ in _runs(_kept(model)):
        seeds.setdefault(point[:3], []).append(point)
    means = []
    for place, own in seeds.items():
        size, kl, perplexity, blimp = (statistics.mean(numbers) for numbers in zip(*(p[3:7] for p in own), strict=True))
        means.append(Point(*place, size, kl, perplexity, blimp, len(own)))
    return sorted(means, key=lambda point: (-point.bytes, point.kl))


def table() -> Iterator[str]:
    """Yield per model a table of the lower envelope, and one of all combinations: MB and KL at each number of bits."""
    for model in dict.fromkeys(piece[0] for piece in PIECES.values()):
        found = points(model)
        if not found:
            continue
        full = _kept(model)["full"]
        counts = {point.seeds for point in found}
        seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{counts.pop()}"
        scores = f"{full[BYTES] / 1e6:.2f} MB, perplexity {full[PERPLEXITY]:.1f}, BLiMP {full[BLIMP]:.3f}"
        yield f"{model}-moe ({scores}); seeds: {seeds}"
        yield ""
        yield "| MB | lowest KL | bits | KL | perplexity | BLiMP | full model, quantized: MB, KL |"
        yield "|---|---|---|---|---|---|---|"
        plain = [point for point in found if point.method == FULL]
        for point in (found[place] for place in reversed(lower_envelope([(point.bytes, point.kl) for point in found]))):
            other = next((one for one in plain if one.bytes <= point.bytes * 1.001), None)
            beside = (
                "–" if other is None else "the same" if other == point else f"{other.bytes / 1e6:.2f}, {other.kl:.3g}"
            )
            scores = f"{point.kl:.3g} | {point.perplexity:.1f} | {point.blimp:.3f}"
            yield f"| {point.bytes / 1e6:.2f} | {point.line} | {point.bits} | {scores} | {beside} |"
        yield ""
        yield "| MB, KL at | " + " | ".join(f"{bits} bits" for bits in ("16", *QUANTIZE)) + " |"
        yield "|---" * (len(QUANTIZE) + 2) + "|"
        for line in dict.fromkeys(point.line for point in sorted(found, key=lambda p: (-int(p.share), p.method))):
            own = {point.bits: f"{point.bytes / 1e6:.2f}, {point.kl:.3g}" for point in found if point.line == line}
            yield f"| {line} | " + " | ".join(own.get(bits, "–") for bits in ("16", *QUANTIZE)) + " |"
        yield ""


def main() -> None:
    """Print a piece's params.yaml, write its file, print the tables or draw the picture."""
    parser, what = pieces.commands(__doc__, PIECES)
    command = what.add_parser("picture")
    command.add_argument("model", choices=["demo", "shared"])
    command.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.what == "picture":
        args.file.write_text(envelope.picture(points(args.model)))
    else:
        pieces.answer(args, left, params, keep, table)


if __name__ == "__main__":
    main()
