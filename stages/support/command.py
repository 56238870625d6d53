"""The command line of all stages: arguments, provenance, reuse of finished work, and plain messages for errors.

artifacts/job_cache.py says which accidents the reuse covers.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mergemoe import environment
from mergemoe.artifacts import job_cache, provenance, run_guard, verify
from mergemoe.artifacts.addresses import address
from mergemoe.artifacts.writing import writing
from mergemoe.errors import UserError

Work = Callable[[argparse.Namespace], Path | None]


def stage(
    name: str,
    doc: str | None,
    *inputs: str,
    many: Sequence[str] = (),
    also: Sequence[str] = (),
    pair: bool = False,
    hashed: bool = True,
) -> Callable[[Work], Callable[[], None]]:
    """Make a stage of the function that does its work: parse the command line, and work unless that was done already.

    The function gets the options, with `provenance`, which it writes into its artifacts. It may return a scratch
    folder, which is deleted when nothing can be lost.

    Args:
        name: name of the stage.
        doc: docstring of its module, shown by --help.
        inputs: names of the files it reads; each becomes an option --NAME, and its content part of the provenance.
        many: the same, for options that take several files.
        also: further options that every call must give.
        pair: whether it writes JSON beside its output, under the same name.
        hashed: whether the provenance names all that it reads; only then can finished work be recognized. Else the
            stage itself gives what it reads to `check_inputs`.
    """

    def decorate(work: Work) -> Callable[[], None]:
        def main() -> None:
            args = _arguments(doc, inputs, many, also)
            made = args.provenance = _made_by(name, args)
            outs = [Path(args.out), Path(args.out).with_suffix(".json")] if pair else [Path(args.out)]
            job_cache.run_once(lambda: work(args), outs, made, complete=hashed, guarded=claims() is not None)

        return main

    return decorate


def _arguments(doc: str | None, inputs: Sequence[str], many: Sequence[str], also: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", type=json.loads, required=True, help="the stage's parameters as JSON")
    parser.add_argument("--code", required=True, help="digest of the stage's code, for the provenance")
    for name in (*inputs, *also):
        parser.add_argument(f"--{name}", required=True)
    for name in many:
        parser.add_argument(f"--{name}", required=True, nargs="*")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args()
    args.inputs = [*(getattr(args, name) for name in inputs), *(path for name in many for path in getattr(args, name))]
    return args


def _made_by(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the provenance of an artifact: stage, path, parameters, inputs, code."""
    check_inputs(args.inputs)
    return {
        "stage": stage,
        "path": address(args.out),
        "params": args.cfg,
        "inputs": {path: provenance.content_digest(path) for path in sorted(args.inputs)},
        "code": args.code,
    }


def check_inputs(inputs: Iterable[str]) -> None:
    """Check everything that a job reads.

    Raises:
        ArtifactError: if an input is not what its path says, or, in a run of the workflow, what params.yaml asks for.
    """
    known: dict[str, str] = {}
    for path in inputs:
        verify.check_input(path, claims(), known)


@functools.cache
def claims() -> dict[str, Any] | None:
    """Return the expected provenance that the Snakefile wrote for its jobs; None if a stage is run by hand."""
    path = os.environ.get(run_guard.RUN)
    if run_guard.run_is_over():
        raise UserError(run_guard.OVER)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def run(main: Callable[[], None]) -> None:
    """Run a stage. A user's mistake or a full disk ends it in one line; else its log ends with what it ran in."""
    try:
        with writing():
            main()
    except UserError as error:
        sys.exit(f"error: {error}")
    print(environment.environment_line(), file=sys.stderr)
    print(f"CPU time: {time.process_time():.1f} s", file=sys.stderr)
