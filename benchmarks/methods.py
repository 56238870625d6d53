"""Compare all methods at equal size: write a comparison's params.yaml, and print the table of its scores.

python benchmarks/methods.py params NAME > FILE    # snakemake --cores all --configfile FILE
python benchmarks/methods.py table NAME            # reads benchmarks/methods/NAME.json, a copy of results/metrics.json

`make bench` does both for every comparison. Equal size means that every method keeps the same share of the routed
experts' weights. `oracle` keeps more than the original and has no row.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_suffix("")
SHARES = {"75": 0.75, "50": 0.5, "25": 0.25}
SEEDS = range(3)
# method -> (the grouping's `by`, the method's keys). `sized` chooses experts and width by held-out error.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("weights", {"method": "average"}),
    "hcsmoe": ("outputs", {"method": "hcsmoe"}),
    "zipit": ("weights", {"method": "zipit"}),
    "msmoe": ("router", {"method": "msmoe"}),
    "mergemoe": ("weights", {"method": "mergemoe"}),
    "reap": ("saliency", {"method": "reap"}),
    "routed": ("weights", {"method": "routed"}),
    "joint": ("weights", {"method": "joint"}),
    "pruned": ("saliency", {"method": "joint", "routing": "pruned"}),
    "folded": ("selection", {"method": "joint", "routing": "folded", "features": "selected"}),
    "select": ("selection", {"method": "select"}),
    "sized": ("share", {"method": "select", "width": "auto"}),
    "slim": ("none", {"method": "slim"}),
}
STOCK = {"reap", "pruned", "folded", "slim"}
MIXED = {"source": "data/calibration/mixed.jsonl.gz", "samples": 64, "length": 256, "holdout": 0.125}
GIVEN = [method for method in METHODS if method != "sized"]  # `sized` takes minutes to measure its budgets
DEMO = {"model": "data/demo-moe", "calibrate": MIXED, "shares": list(SHARES), "methods": GIVEN}
COMPARISONS: dict[str, dict[str, Any]] = {
    "demo": {**DEMO, "methods": list(METHODS)},
    "generation": {**DEMO, "methods": list(METHODS), "shares": ["50"], "generation": {}},
    "code": {**DEMO, "calibrate": {**MIXED, "source": "data/calibration/code.jsonl.gz"}},
    "few": {**DEMO, "calibrate": {**MIXED, "samples": 4, "holdout": 0.25}},
    "shared": {**DEMO, "model": "data/shared-moe"},
}


def params(name: str) -> dict[str, Any]:
    """Return the params.yaml of a comparison."""
    return params_of(COMPARISONS[name])


def params_of(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the params.yaml of a comparison's settings; with `refine`, each run is there without and with it."""
    refine = chosen.get("refine", {})
    model = Path(chosen["model"]).name.removesuffix("-moe")
    calibrations = {
        f"{name_of(chosen)}_{seed}": {**chosen["calibrate"], "seed": seed} for seed in chosen.get("seeds", SEEDS)
    }
    clusters, solves, runs = {}, {}, []
    for share in chosen["shares"]:
        for method in chosen["methods"]:
            by, keys = METHODS[method]
            cluster, solve = (by, f"{method}_{share}") if by == "none" else (f"{by}_{share}", method)
            clusters[cluster] = grouping(by, SHARES[share])
            solves[solve] = {**keys, "width": SHARES[share]} if by == "none" else keys
            runs += [
                [model, calibrate, cluster, solve, *last]
                for calibrate in calibrations
                for last in ([], *([name] for name in refine))
            ]
    heldout = {"source": "data/heldout/mixed.jsonl.gz", "samples": 80, "length": 256}
    evaluate = {"tasks": chosen.get("tasks", {}), "heldout": heldout, "dtype": "float32", "batch_tokens": 4096}
    if "generation" in chosen:
        evaluate["generation"] = chosen["generation"]
    return {
        "model": {model: {"path": chosen["model"]}},
        "calibrate": calibrations,
        "capture": {"dtype": "float32", "batch_tokens": 4096},
        "cluster": clusters,
        "solve": solves,
        "refine": refine,
        "evaluate": evaluate,
        "runs": runs,
    }


def grouping(by: str, share: float) -> dict[str, Any]:
    """Return a choice of `cluster` that keeps a share of the routed experts' weights."""
    if by == "none":  # the method makes all experts narrower
        return {"by": by}
    return {"by": "selection", "share": share} if by == "share" else {"by": by, "experts": share}


def name_of(chosen: dict[str, Any]) -> str:
    """Return the name of a comparison's calibrations; equal calibrations have one name, so they share artifacts."""
    samples = chosen["calibrate"]["samples"]
    size = "few_" if samples < MIXED["samples"] else f"{samples}_" if samples > MIXED["samples"] else ""
    return size + Path(chosen["calibrate"]["source"]).name.partition(".")[0]


def measured(name: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return {method: {share: {score: its values over the seeds}}}; the method `full` is the full model."""
    return scores_of(json.loads((FOLDER / f"{name}.json").read_text()))


def scores_of(metrics: dict[str, Any]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return the same of a metrics.json; a refined run of `select` has the name `select+tuned`."""
    (model,) = metrics.values()
    found: dict[str, Any] = {"full": {"100": {key: [value] for key, value in model["full"].items()}}}
    for run, scores in model["runs"].items():
        _, cluster, solve = run.split("/")
        solve, plus, refine = solve.partition("+")
        method, share = solve.rsplit("_", 1) if cluster == "none" else (solve, cluster.rsplit("_", 1)[1])
        method += plus + refine
        for key, value in scores.items():
            found.setdefault(method, {}).setdefault(share, {}).setdefault(key, []).append(value)
    return found


def table(name: str) -> Iterator[str]:
    """Yield the lines of a comparison's table, with the best value of a column in bold, and a sentence per size."""
    found, shares = measured(name), COMPARISONS[name]["shares"]
    if COMPARISONS[name].get("generation") is not None:
        keys = ["fidelity/kl", "fidelity/perplexity", "fidelity/top1", "generation/loops", "generation/distinct2"]
        columns = [(key.partition("/")[2], "50", key, False) for key in keys]
        run = ["full", *(method for method in METHODS if method in found)]
        yield from rows({**found, "full": {"50": found["full"]["100"]}}, run, columns)
        return
    columns = [(f"KL at {share}%", share, "fidelity/kl", True) for share in shares]
    columns += [
        ("top-1 at 50%", "50", "fidelity/top1", False),
        ("perplexity at 50%", "50", "fidelity/perplexity", True),
    ]
    run = [method for method in METHODS if method in found]
    yield from rows(found, run, columns)
    yield ""
    for share in shares:
        kl = {method: statistics.mean(found[method][share]["fidelity/kl"]) for method in run}
        better = ", ".join(f"`{method}`" for method in run if kl[method] < kl["slim"]) or "none"
        stock = min((method for method in run if method in STOCK), key=lambda m: kl[m])
        yield (
            f"- At {share}%, `{min(kl, key=lambda m: kl[m])}` has the lowest KL. `select`'s KL is "
            f"{kl['mergemoe'] / kl['select']:.1f} times lower than `mergemoe`'s and "
            f"{kl['reap'] / kl['select']:.1f} times lower than `reap`'s. The best stock checkpoint is `{stock}`, "
            f"{kl['reap'] / kl[stock]:.1f} times lower than `reap`. Better than `slim`: {better}."
        )


def rows(found: dict[str, Any], methods: list[str], columns: list[tuple[str, str, str, bool]]) -> Iterator[str]:
    """Yield a Markdown table of columns (title, share, score, mark the least or not): mean ± deviation over seeds."""
    yield "| | " + " | ".join(title for title, *_ in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    values = {m: [found[m].get(share, {}).get(key) for _, share, key, _ in columns] for m in methods}
    for method in methods:
        cells = []
        for place, (value, (*_, least)) in enumerate(zip(values[method], columns, strict=True)):
            best = least and value and statistics.mean(value) == min(statistics.mean(v[place]) for v in values.values())
            cells.append(f"**{shown(value)}**" if best else shown(value))
        yield f"| {method}{' (stock)' if method in STOCK else ''} | " + " | ".join(cells) + " |"


def shown(values: list[float] | None) -> str:
    """Return the text `mean ± standard deviation`."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ± {float(f'{statistics.stdev(values):.1g}'):g}"


def main() -> None:
    """Print a comparison's params.yaml or table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["params", "table"])
    parser.add_argument("name", choices=list(COMPARISONS))
    args = parser.parse_args()
    if args.what == "params":
        yaml.safe_dump(params(args.name), sys.stdout, sort_keys=False)
    else:
        print("\n".join(table(args.name)))


if __name__ == "__main__":
    main()
