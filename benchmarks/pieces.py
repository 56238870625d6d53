"""The command line of a benchmark that is measured piece by piece: left, params, keep, table."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml


def commands(doc: str | None, names: Iterable[str]) -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser, and what further commands are added to."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("left", "params", "keep"):
        command = what.add_parser(name)
        command.add_argument("piece", choices=list(names))
        if name == "params":
            command.add_argument("seed", type=int)
    what.add_parser("table")
    return parser, what


def answer(
    args: argparse.Namespace,
    left: Callable[[str], list[int]],
    params: Callable[[str, int], dict[str, Any]],
    keep: Callable[[str], None],
    table: Callable[[], Iterator[str]],
) -> None:
    """Print a piece's params.yaml or the seeds that are left, write its file, or print the table."""
    if args.what == "left":
        print(*left(args.piece))
    elif args.what == "params":
        yaml.safe_dump(params(args.piece, args.seed), sys.stdout, sort_keys=False)
    elif args.what == "keep":
        keep(args.piece)
    else:
        print("\n".join(table()).strip())
