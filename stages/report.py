"""Gather every score: metrics.json, its tables, one page, parts of it for Snakemake's own report, a card per run.

python -m stages.report --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --metrics METRICS.json --quality RUNS.csv --errors LAYERS.csv
    --page INDEX.html --parts PART.html ... --cards FOLDER
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mergemoe import metrics, modelcard, report, store, study, tables
from stages import common


def main() -> None:
    """Read all that the runs left, write the views of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", type=json.loads, required=True, help="runs and tasks as JSON")
    parser.add_argument("--code", required=True, help="digest of the stage's code, for the provenance")
    for name in ("results", "metrics", "quality", "errors", "page", "cards"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--parts", type=Path, nargs="+", required=True)
    args = parser.parse_args()

    numbers = metrics.gather(args.results, args.cfg["runs"], args.cfg["tasks"])
    models = study.load(args.results, args.cfg["runs"], args.cfg["tasks"], numbers)
    made = {"stage": "report", "params": args.cfg, "code": args.code, "payload": store.digest_json(numbers)}
    whole = {**made, "inputs": study.inputs(args.results, models)}
    texts = {
        args.metrics: metrics.dump(numbers),
        args.quality: tables.quality(models),
        args.errors: tables.errors(models),
        args.page: report.page(models, numbers, whole),
        **{path: report.page(models, numbers, whole, part=path.stem) for path in args.parts},
    }
    for path, text in texts.items():
        with store.atomic(path) as file:
            file.write_text(text)
    with store.atomic(args.cards) as folder:
        for model in models:
            for run in model.runs:
                provenance = {**made, "inputs": study.inputs(args.results, [replace(model, runs=[run])])}
                card = folder / model.name / f"{run.name}.md"
                card.parent.mkdir(parents=True, exist_ok=True)
                card.write_text(modelcard.card(model, run, store.canonical(provenance)))


if __name__ == "__main__":
    common.run(main)
