"""Compare methods before and after a refine, at equal size: write a piece's params.yaml, and print the table of all.

python benchmarks/refine.py left PIECE             # prints the seeds that are not measured yet
python benchmarks/refine.py params PIECE SEED      # snakemake --cores all --configfile FILE
python benchmarks/refine.py keep PIECE             # adds results/ and logs/ to benchmarks/refine/PIECE.json
python benchmarks/refine.py table                  # reads these files

`make bench-refine PIECES="demo_64_50 ..."` does all. A piece is a model, the number of calibration sequences and the
share of the routed weights that is kept; its calibration seeds are measured one by one. A seed takes 20 minutes or less
of two cores, and the table shows what is there.
`demo_512_50_tasks` scores the first seed's runs of demo_512_50 on the seven tasks, from the hub, or from the files in
$MERGEMOE_SHARED/data.
"""

import json
import os
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also when a test loads this file
import methods
import pieces
import seven_tasks

FOLDER = Path(__file__).with_suffix("")
METHODS = ("msmoe", "mergemoe", "reap", "folded", "slim", "select")
REFINE = {"tuned": {"by": "layer"}}  # the defaults
CALIBRATIONS = {
    "64": methods.MIXED,
    "512": {**methods.MIXED, "samples": 512},
    "few": {**methods.COMPARISONS["few"]["calibrate"], "holdout": 0.5},
    "code": methods.COMPARISONS["code"]["calibrate"],
}
NAMES = {
    "64": "64 sequences",
    "512": "512 sequences",
    "few": "4 sequences, 2 of them held out",
    "code": "64 sequences of code",
}
SECONDS = "cpu_seconds/layer"
OTHERS = {
    "fidelity/perplexity": "perplexity at 50%",
    "blimp/acc": "BLiMP at 50%",
    "generation/loops": "loops at 50%",
    "generation/distinct2": "distinct-2 at 50%",
    SECONDS: "CPU seconds a layer at 50%",
}
PIECES = {
    f"{model}_{calibrate}_{share}": (model, calibrate, share)
    for model in ("demo", "shared")
    for calibrate in CALIBRATIONS
    for share in methods.SHARES
    if calibrate in ("64", "512") or (model, share) == ("demo", "50")
}
SCORED = "demo_512_50_tasks"
PIECES[SCORED] = PIECES[SCORED.removesuffix("_tasks")]
LIMIT = 100  # examples of a task
MEASURED_TWICE = ("demo_64_50", "demo_512_50")  # by generation and BLiMP, too


def seeds(piece: str) -> list[int]:
    """Return the calibration seeds of a piece."""
    return [0] if piece == SCORED else list(methods.SEEDS)


def left(piece: str) -> list[int]:
    """Return the calibration seeds of a piece that its file does not have."""
    runs = [run for model in _kept(piece).values() for run in model["runs"]]
    kept = {int(run.split("/")[0].rsplit("_", 1)[1]) for run in runs}
    return [seed for seed in seeds(piece) if seed not in kept]


def params(piece: str, seed: int) -> dict[str, Any]:
    """Return the params.yaml of one calibration seed of a piece."""
    model, calibrate, share = PIECES[piece]
    chosen: dict[str, Any] = {"model": f"data/{model}-moe", "calibrate": CALIBRATIONS[calibrate], "shares": [share]}
    if piece == SCORED:
        chosen |= {"tasks": _tasks(os.environ.get("MERGEMOE_SHARED"))}
    scores = {"tasks": {"blimp": {"include": "data/blimp"}}, "generation": {}} if piece in MEASURED_TWICE else {}
    return methods.params_of({**chosen, "methods": METHODS, "refine": REFINE, "seeds": [seed], **scores})


def _tasks(shared: str | None) -> dict[str, Any]:
    if shared is None:
        return {"mergemoe-seven": {"limit": LIMIT}}
    files = seven_tasks.data_files(f"{shared}/data")
    return {task: {"limit": LIMIT, "data_files": files[task]} for task in files}


def keep(piece: str, project: Path = Path()) -> None:
    """Add runs to a piece's file: their metrics, each with the CPU seconds of a layer's solve, or refine."""
    metrics = json.loads((project / "results/metrics.json").read_text())
    for model, found in metrics.items():
        for run, scores in found["runs"].items():
            calibrate, cluster, last = run.split("/")
            rule = "refine" if "+" in last else "solve"
            folder = project / "logs" / rule / model / calibrate / cluster / last.replace("+", "/")
            logs = [path.read_text() for path in folder.glob("layer_*.log")]
            scores[SECONDS] = statistics.mean(float(re.findall(r"CPU time: ([\d.]+) s", log)[-1]) for log in logs)
        found["runs"] = _kept(piece).get(model, {}).get("runs", {}) | found["runs"]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{piece}.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def table() -> Iterator[str]:
    """Yield the lines of a table per model and calibration: KL before → after at each share."""
    for model, calibrate in dict.fromkeys(piece[:2] for piece in PIECES.values()):
        found = {share: _scores(f"{model}_{calibrate}_{share}") for share in methods.SHARES}
        found = {share: scores for share, scores in found.items() if scores}
        if not found:
            continue
        counts = {len(next(iter(scores["select"].values()))["fidelity/kl"]) for scores in found.values()}
        few = "" if counts == {len(methods.SEEDS)} else f" ({min(counts)} of {len(methods.SEEDS)} seeds so far)"
        yield f"{model}-moe, calibrated on {NAMES[calibrate]}{few}"
        yield ""
        columns = [(f"KL at {share}%", share, "fidelity/kl") for share in found]
        columns += [
            (title, "50", key)
            for key, title in OTHERS.items()
            if key in found.get("50", {}).get("select", {}).get("50", {})
        ]
        yield "| | " + " | ".join(title for title, *_ in columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for method in METHODS:
            cells = [_cell(found[share], method, share, key) for _, share, key in columns]
            yield f"| {method}{' (stock)' if method in methods.STOCK else ''} | " + " | ".join(cells) + " |"
        yield ""
        yield from (_ratios(scores, share) for share, scores in found.items())
        yield ""
    yield from _tasks_table()


def _tasks_table() -> Iterator[str]:
    """Yield the lines of the seven tasks' table, without → with a refine, in percent; none if they were not scored."""
    found = _scores(SCORED)
    if not found:
        return
    share = PIECES[SCORED][2]
    keys = {task: f"{task}/{'contains' if task == 'squad_completion' else 'acc'}" for task in seven_tasks.FILES}
    scored = {name: own["100" if name == "full" else share] for name, own in found.items()}
    percent = {name: {task: 100 * own[key][0] for task, key in keys.items()} for name, own in scored.items()}
    for own in percent.values():
        own["mean"] = statistics.mean(own.values())
    yield f"demo-moe, {LIMIT} examples of each task, in percent; one seed of {NAMES[PIECES[SCORED][1]]}, {share}% kept"
    yield ""
    yield "| | " + " | ".join(["mean", *seven_tasks.FILES]) + " |"
    yield "|---" * (len(seven_tasks.FILES) + 2) + "|"
    yield "| full model | " + " | ".join(f"{percent['full'][task]:.1f}" for task in ("mean", *seven_tasks.FILES)) + " |"
    for method in METHODS:
        pairs = ((percent[method][task], percent[f"{method}+tuned"][task]) for task in ("mean", *seven_tasks.FILES))
        yield f"| {method} | " + " | ".join(f"{before:.1f} → {after:.1f}" for before, after in pairs) + " |"
    yield ""


def _scores(piece: str) -> dict[str, Any]:
    kept = _kept(piece)
    return methods.scores_of(kept) if kept else {}


def _kept(piece: str) -> dict[str, Any]:
    path = FOLDER / f"{piece}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _cell(found: dict[str, Any], method: str, share: str, key: str) -> str:
    values = (found.get(f"{method}{suffix}", {}).get(share, {}).get(key) for suffix in ("", "+tuned"))
    return " → ".join(methods.shown(value) for value in values)


def _ratios(found: dict[str, Any], share: str) -> str:
    kl = {name: statistics.mean(own[share]["fidelity/kl"]) for name, own in found.items() if name != "full"}
    stock = min((f"{method}+tuned" for method in METHODS if method in methods.STOCK), key=lambda name: kl[name])
    return (
        f"- At {share}%, the KL of `select+tuned` is {kl['mergemoe'] / kl['select+tuned']:.1f} times lower than "
        f"`mergemoe`'s and {kl['reap'] / kl['select+tuned']:.1f} times lower than `reap`'s; that of the best stock "
        f"checkpoint, `{stock}`, {kl['reap'] / kl[stock]:.1f} times lower than `reap`'s."
    )


def main() -> None:
    """Print a piece's params.yaml, write its file, or print the table."""
    pieces.answer(pieces.commands(__doc__, PIECES)[0].parse_args(), left, params, keep, table)


if __name__ == "__main__":
    main()
