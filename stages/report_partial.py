"""Show what there is of a study that did not come to its end, and name what there is not.

python -m stages.report_partial --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --logs logs --page scratch/report_partial/index.html

The page lies outside results/, in no output of DVC, and there are no metrics.json and no cards: it is never recorded.
"""

import argparse
import functools
import json
from pathlib import Path

from mergemoe.artifacts import atomic, verify
from mergemoe.report import metrics, missing_results, page, study
from stages.support import command


def main() -> None:
    """Read the results, find the missing ones in the logs, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", type=json.loads, required=True, help="runs and tasks as JSON")
    parser.add_argument("--code", required=True, help="digest of the stage's code, for the provenance")
    for name in ("results", "logs", "page"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()

    runs, tasks = args.cfg["runs"], args.cfg["tasks"]
    there = functools.cache(lambda path: verify.is_current(path, command.claims()))
    missing = missing_results.find_missing(args.results, args.logs, runs, tasks, there)
    made = [run for run in runs if missing_results.assembled(args.results, run, there)]
    numbers = metrics.gather_scores(args.results, made, tasks, there)
    models = study.load_study(args.results, made, tasks, numbers, there)
    shown = {"stage": "report_partial", "params": args.cfg, "code": args.code}
    with atomic.atomic(args.page) as file:
        file.write_text(page.render_page(models, numbers, shown, missing))
    for one in missing:
        print(f"{one.model}/{one.subject} lacks {one.missing}: {one.said}")
    print(f"{args.page} shows the rest")


if __name__ == "__main__":
    command.run(main)
