"""Show what there is of a study that did not finish, and name what is missing.

python -m stages.report_partial --cfg '{"runs": [[MODEL, CALIBRATE, CLUSTER, SOLVE], ...], "tasks": [NAME, ...]}'
    --code DIGEST --results results --logs logs --out scratch/report_partial/index.html

The page lies outside results/, in no output of DVC, and there are no metrics.json and no cards: it is never recorded.
"""

import argparse
import functools
from pathlib import Path

from mergemoe.artifacts import atomic, verify
from mergemoe.artifacts.run import Run
from mergemoe.report import metrics, missing_results, page, study
from stages.support import command


@command.stage("report_partial", __doc__, also=["results", "logs"], hashed=False)
def main(args: argparse.Namespace) -> None:
    """Read what is there, name what is missing from the logs, write the page."""
    results, tasks = Path(args.results), args.cfg["tasks"]
    runs = [Run(*names) for names in args.cfg["runs"]]
    there = functools.cache(lambda path: verify.is_current(path, command.claims()))
    missing = missing_results.find_missing(results, Path(args.logs), runs, tasks, there)
    made = [run for run in runs if missing_results.assembled(results, run, there)]
    numbers = metrics.gather_scores(results, made, tasks, there)
    models = study.load_study(results, made, tasks, numbers, there)
    shown = {"stage": "report_partial", "params": args.cfg, "code": args.code}
    with atomic.atomic(args.out) as file:
        file.write_text(page.render_page(models, numbers, shown, missing), encoding="utf-8")
    for one in missing:
        print(f"{one.model}/{one.subject} lacks {one.missing}: {one.said}")
    print(f"{args.out} shows the rest")


if __name__ == "__main__":
    command.run(main)
