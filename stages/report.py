"""Gather every score: metrics.json, its tables, one page, parts of it for Snakemake's own report, a card per run.

python -m stages.report --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --metrics METRICS.json --quality RUNS.csv --errors LAYERS.csv
    --page INDEX.html --parts PART.html ... --cards FOLDER --out PROVENANCE.json

PROVENANCE.json lists the sha256 of all the others.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from mergemoe.artifacts import atomic, digests, provenance, store
from mergemoe.report import metrics, model_card, page, study, tables
from stages.support import command


def main() -> None:
    """Read all that the runs left, write the views of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", type=json.loads, required=True, help="runs and tasks as JSON")
    parser.add_argument("--code", required=True, help="digest of the stage's code, for the provenance")
    for name in ("results", "metrics", "quality", "errors", "page", "cards", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--parts", type=Path, nargs="+", required=True)
    args = parser.parse_args()

    numbers = metrics.gather_scores(args.results, args.cfg["runs"], args.cfg["tasks"])
    models = study.load_study(args.results, args.cfg["runs"], args.cfg["tasks"], numbers)
    made = {"stage": "report", "params": args.cfg, "code": args.code, "payload": digests.digest_json(numbers)}
    whole = {**made, "inputs": study.inputs(args.results, models)}
    texts = {
        args.metrics: metrics.metrics_text(numbers),
        args.quality: tables.quality(models),
        args.errors: tables.errors(models),
        args.page: page.render_page(models, numbers, whole),
        **{path: page.render_page(models, numbers, whole, part=path.stem) for path in args.parts},
    }
    for path, text in texts.items():
        with atomic.atomic(path) as file:
            file.write_text(text)
    with atomic.atomic(args.cards) as folder:
        for model in models:
            for run in model.runs:
                own = {**made, "inputs": study.inputs(args.results, [replace(model, runs=[run])])}
                card = folder / model.name / f"{run.name}.md"
                card.parent.mkdir(parents=True, exist_ok=True)
                card.write_text(model_card.scored_card(model, run, digests.canonical(own)))
    cards = sorted(path for path in args.cards.rglob("*.md"))
    files = {os.path.relpath(path, args.out.parent): digests.sha256(path) for path in [*texts, *cards]}
    reported = {
        "stage": "report",
        "path": provenance.address(args.out),
        **{k: whole[k] for k in ("params", "inputs", "code")},
    }
    store.write_json(args.out, {"files": files}, reported)


if __name__ == "__main__":
    command.run(main)
