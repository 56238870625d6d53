"""What all stages share: arguments, provenance, what another copy has done, and errors said in one line."""

import argparse
import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergemoe import environment
from mergemoe.artifacts import job_cache, provenance, run_guard, verify
from mergemoe.errors import UserError

FULL = "no space left|file too large|quota exceeded"  # as the system says it, through any library
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
    """Make a stage of the function that does its work: it parses the command line, and works unless that was done.

    The function gets the options, with `provenance`: what its artifacts say of their making. It may return a scratch
    folder, which goes when nothing can be lost.

    Args:
        name: the stage's.
        doc: its docstring, shown by --help.
        inputs: names of the files it reads; each becomes an option --NAME, hashed into the provenance.
        many: the same for options that take several files.
        also: further options that every call must give.
        pair: whether it writes JSON beside its output, under the same name.
        hashed: whether all that it reads is; else what another copy of the job made may be of something else.
    """

    def decorate(work: Work) -> Callable[[], None]:
        def main() -> None:
            args = _arguments(doc, inputs, many, also)
            made = args.provenance = _made_by(name, args)
            outs = [Path(args.out), Path(args.out).with_suffix(".json")] if pair else [Path(args.out)]
            if hashed and (all(job_cache.is_whole(path, made) for path in outs) or job_cache.take(outs, made)):
                print(f"{args.out}: another copy of this job has finished it, and it holds", file=sys.stderr)
                return
            scratch = None
            try:
                scratch, overtaken = work(args), not run_guard.LEFT.isdisjoint(outs)
            except Exception:
                overtaken = hashed and all(job_cache.is_whole(path, made) for path in outs)
                if not overtaken:
                    raise
            if overtaken and claims() is not None:  # Snakemake would put a new date on what others may have read by now
                raise UserError(f"{args.out} is whole: another copy of this job has finished it meanwhile")
            if hashed:
                job_cache.keep(outs, made)
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)  # another copy may write there

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
    """Return what an artifact says of its making: stage, path, parameters, inputs, code.

    Raises:
        ArtifactError: where an input is not what its path says, or, in a run of the workflow, what params.yaml says.
    """
    known: dict[str, str] = {}
    for path in args.inputs:
        verify.check_input(path, claims(), known)
    return {
        "stage": stage,
        "path": provenance.address(args.out),
        "params": args.cfg,
        "inputs": {path: provenance.content(path) for path in sorted(args.inputs)},
        "code": args.code,
    }


@functools.cache
def claims() -> dict[str, Any] | None:
    """Return what the Snakefile wrote down for its jobs; nothing where a stage is run by hand."""
    path = os.environ.get(run_guard.RUN)
    if run_guard.run_is_over():
        raise UserError(run_guard.OVER)
    return json.loads(Path(path).read_text()) if path else None


def run(main: Callable[[], None]) -> None:
    """Run a stage; a user's mistake or a full disk ends it in one clear line, else what it ran in ends its log."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not re.search(FULL, str(error), re.IGNORECASE):
            raise
        sys.exit(f"error: {error}. Make room, then run `snakemake` again: what jobs have finished stays")
    print(environment.environment_line(), file=sys.stderr)
    print(f"CPU time: {time.process_time():.1f} s", file=sys.stderr)
