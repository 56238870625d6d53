"""Gather every score: metrics.json, one page, a card per run.

python -m stages.report --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --metrics METRICS.json --page INDEX.html --cards FOLDER
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mergemoe import cards, metrics, report, store, study
from stages import common


def main() -> None:
    """Read all that the runs left, write the three views of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", type=json.loads, required=True, help="runs and tasks as JSON")
    parser.add_argument("--code", required=True, help="digest of the stage's code, for the provenance")
    for name in ("results", "metrics", "page", "cards"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()

    numbers = metrics.gather(args.results, args.cfg["runs"], args.cfg["tasks"])
    models = study.load(args.results, args.cfg["runs"], args.cfg["tasks"], numbers)
    made = {"stage": "report", "params": args.cfg, "code": args.code, "payload": store.digest_json(numbers)}
    page = report.page(models, numbers, {**made, "inputs": study.inputs(args.results, models)})
    with store.atomic(args.metrics) as file:
        file.write_text(metrics.dump(numbers))
    with store.atomic(args.page) as file:
        file.write_text(page)
    with store.atomic(args.cards) as folder:
        for model in models:
            for run in model.runs:
                provenance = {**made, "inputs": study.inputs(args.results, [replace(model, runs=[run])])}
                scores = metrics.markdown(run.scores, model.full, model.tasks)
                card = folder / model.name / f"{run.name}.md"
                card.parent.mkdir(parents=True, exist_ok=True)
                card.write_text(cards.full(run.parameters, run.stock, scores, store.canonical(provenance)))


if __name__ == "__main__":
    common.run(main)
