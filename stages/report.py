"""Gather every score: metrics.json, its tables, one page, parts of it for Snakemake's own report, a card per run.

python -m stages.report --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --metrics METRICS.json --quality RUNS.csv --errors LAYERS.csv
    --page INDEX.html --cards FOLDER --out PROVENANCE.json

The parts lie beside the page. PROVENANCE.json lists the sha256 of all the others. A refined run has a fifth name.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from mergemoe.artifacts import atomic, digests, store
from mergemoe.artifacts.paths import below
from mergemoe.artifacts.run import Run
from mergemoe.report import metrics, model_card, page, study, tables
from stages.support import command


@command.stage("report", __doc__, also=["results", "metrics", "quality", "errors", "page", "cards"], hashed=False)
def main(args: argparse.Namespace) -> None:
    """Read all artifacts of the runs; write numbers, tables, pages and cards."""
    results, tasks = Path(args.results), args.cfg["tasks"]
    runs = [Run(*names) for names in args.cfg["runs"]]
    numbers = metrics.gather_scores(results, runs, tasks)
    models = study.load_study(results, runs, tasks, numbers)
    made = {"stage": "report", "params": args.cfg, "code": args.code, "payload": digests.digest_json(numbers)}
    whole = {**made, "inputs": study.inputs(results, models)}
    command.check_inputs(str(below(results, path)) for path in whole["inputs"])
    texts = {
        args.metrics: metrics.metrics_text(numbers),
        args.quality: tables.quality(models),
        args.errors: tables.errors(models),
        args.page: page.render_page(models, numbers, whole),
        **{Path(args.page).with_stem(part): page.render_page(models, numbers, whole, part=part) for part in page.PARTS},
    }
    for path, text in texts.items():
        with atomic.atomic(path) as file:
            file.write_text(text, encoding="utf-8")
    with atomic.atomic(args.cards) as folder:
        for model in models:
            for run in model.runs:
                own = {**made, "inputs": study.inputs(results, [replace(model, runs=[run])])}
                card = folder / model.name / f"{run.name}.md"
                card.parent.mkdir(parents=True, exist_ok=True)
                card.write_text(model_card.scored_card(model, run, digests.canonical(own)), encoding="utf-8")
    cards = sorted(Path(args.cards).rglob("*.md"))
    folder = Path(args.out).parent
    files = {os.path.relpath(path, folder): digests.sha256(path) for path in [*texts, *cards]}
    store.write_json(args.out, {"files": files}, {**args.provenance, "inputs": whole["inputs"]})


if __name__ == "__main__":
    command.run(main)
