"""The command `mergemoe`."""

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergemoe.artifacts.writing import writing
from mergemoe.errors import UserError

if TYPE_CHECKING:
    from mergemoe.workflow.config.params import Params


def main() -> None:
    """Parse the command line and run one command; a UserError or a full disk ends it in one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="mergemoe", description="Compress Mixture-of-Experts models by merging experts."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "inspect", help="show a checkpoint's layers, experts and sizes, and what merging saves"
    )
    command.add_argument("model", help="a checkpoint folder")
    command.set_defaults(run=run_inspect)

    command = commands.add_parser(
        "fetch", help="download a hub model at one commit, or all hub models of a params.yaml"
    )
    command.add_argument("model", nargs="?", help="the model's id, such as Qwen/Qwen3-30B-A3B")
    command.add_argument("--revision", metavar="COMMIT", help="the full commit hash")
    command.add_argument(
        "--params", metavar="FILE", help="download every model of this params.yaml that has a revision"
    )
    command.set_defaults(run=run_fetch)

    command = commands.add_parser(
        "plan", help="show jobs, disk, memory, tokens and model sizes of params.yaml before anything runs"
    )
    command.add_argument("--params", default="params.yaml", metavar="FILE")
    command.add_argument(
        "--bytes", metavar="SIZE", help="list the combinations of its choices that fit a size such as 16GB, best first"
    )
    command.set_defaults(run=run_plan)

    command = commands.add_parser("table", help="print the scores in results/metrics.json as a table")
    command.set_defaults(run=run_table)

    command = commands.add_parser("export", help="copy a run's checkpoint with its full card")
    command.add_argument("name", metavar="RUN", help="MODEL/CALIBRATE/CLUSTER/SOLVE[+REFINE][@QUANTIZE]")
    command.add_argument("folder", metavar="DIR", help="a new folder")
    command.add_argument(
        "--packed", action="store_true", help="write quantized experts in their bits, as compressed-tensors has them"
    )
    command.set_defaults(run=run_export)

    command = commands.add_parser("record", help="verify the finished results and record them with DVC")
    command.set_defaults(run=run_record)

    command = commands.add_parser("restore", help="restore a recorded revision: code, results and Snakemake's metadata")
    command.add_argument("revision", metavar="REV", help="a git revision")
    command.set_defaults(run=run_restore)

    command = commands.add_parser("audit", help="check that results are the recorded ones and can be reproduced")
    command.add_argument(
        "revision", metavar="REV", nargs="?", help="a git revision; the working tree if it is left out"
    )
    command.add_argument("--rerun", action="store_true", help="compute everything again in a temporary clone")
    command.add_argument(
        "--environment",
        action="store_true",
        help="install the packages of the revision's envs/cpu.txt for the rerun, in a temporary environment",
    )
    command.add_argument("--strict", action="store_true", help="exit with 2 if results are equivalent, not identical")
    command.set_defaults(run=run_audit)

    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # after cleaning up
    try:
        with writing():
            args.run(args)
            print(end="", flush=True)  # also if there is no standard output
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def run_inspect(args: argparse.Namespace) -> None:
    """Print a checkpoint's family, layers, experts and sizes, and whether it can be compressed."""
    from mergemoe.workflow.planning import inspect

    print(inspect.inspect_checkpoint(args.model))
    from mergemoe.checkpoints import model_folder, validation
    from mergemoe.models import deepseek, layout, supported

    validation.check_checkpoint(args.model)
    supported.check_architecture(args.model)
    config = model_folder.read_config(args.model)
    if config["model_type"] == "deepseek":
        deepseek.qwen2_moe_config(config)
    else:
        layout.describe_layout(args.model, digests=False)
    print("\nThis version can compress the model, judging by config.json and the headers of its weights.")


def run_fetch(args: argparse.Namespace) -> None:
    """Download models of the hub; print each folder and record."""
    from mergemoe.checkpoints import model_folder
    from mergemoe.checkpoints.hub import fetch

    if (args.model is None) == (args.params is None):
        raise UserError("mergemoe fetch: give either a model and --revision, or --params with a params.yaml")
    wanted = [(args.model, args.revision)]
    if args.params:
        chosen = _read_params(args.params).model.values()
        wanted = list(dict.fromkeys((model.path, model.revision) for model in chosen if model.revision))
        if not wanted:
            raise UserError(
                f"{args.params}: no choice of `model` has a `revision`, so there is nothing to download from the hub. "
                "Add `revision` to a model of the hub"
            )
    for model, revision in wanted:
        record = fetch.fetch_model(model, revision)
        size = sum(file["size"] for file in json.loads(record.read_text(encoding="utf-8"))["files"].values())
        print(f"{model}: {size / 1e9:.2f} GB in {model_folder.locate_checkpoint(model, revision)}")
        print(f"{record} lists the files and their sha256. Keep it in git.")


def run_plan(args: argparse.Namespace) -> None:
    """Print the jobs, disk, memory and model sizes of params.yaml."""
    from mergemoe.workflow.planning import plan, preflight, slurm, slurm_table

    params = _read_params(args.params)
    preflight.check_params(params)
    if args.bytes is not None:
        print(_fitting(params, args))
        return
    print(plan.plan_text(params, Path("results")))
    if Path(args.params).resolve() != Path("params.yaml").resolve():
        print(
            f"\nTo run this file in place of params.yaml: snakemake --cores all --configfile {shlex.quote(args.params)}"
        )
    if slurm.PROFILE.is_dir():
        print(f"\n{slurm_table.slurm_text(params)}")


def _fitting(params: "Params", args: argparse.Namespace) -> str:
    from mergemoe.artifacts import paths
    from mergemoe.report import metrics
    from mergemoe.workflow.ledger import commands
    from mergemoe.workflow.planning import fitting

    limit, results, measured = fitting.parse_bytes(args.bytes), Path(paths.RESULTS), {}
    if Path(args.params).resolve() == Path("params.yaml").resolve() and paths.below(results, paths.REPORTED).exists():
        claims = commands.ask_ledger(Path.cwd())["claims"]
        measured = fitting.current_scores(metrics.read_metrics(results), claims, results)
    return fitting.fitting_text(params, measured, limit)


def _read_params(path: str) -> "Params":
    from mergemoe.workflow.config import params, params_file

    return params.read_params(params_file.read_file(path), path)


def run_record(args: argparse.Namespace) -> None:
    """Verify the workflow's results and record them with DVC."""
    from mergemoe.workflow.ledger import record

    print(record.record_run(Path.cwd()))


def run_restore(args: argparse.Namespace) -> None:
    """Restore a recorded revision."""
    from mergemoe.workflow.ledger.restore import restore_revision

    print(restore_revision(Path.cwd(), args.revision))


def run_audit(args: argparse.Namespace) -> None:
    """Print an audit's findings, write them as JSON and as a page; exit with 1 if different, or `--strict` with 2."""
    from mergemoe.artifacts import atomic
    from mergemoe.workflow.comparison import verdict
    from mergemoe.workflow.ledger import audit_page, audit_text
    from mergemoe.workflow.ledger.audit import audit_project

    found = audit_project(Path.cwd(), args.revision, args.rerun, args.environment)
    path = Path("logs", "audit", f"{found['revision'][:12]}.json")
    page = path.with_suffix(".html")
    for target, text in ((path, json.dumps(found, indent=1) + "\n"), (page, audit_page.render_audit(found))):
        with atomic.atomic(target) as file:
            file.write_text(text, encoding="utf-8")
    print(f"{audit_text.format_audit(found)}\n({path} has all details, {page} shows them)")
    if found["verdict"] != verdict.IDENTICAL and (args.strict or found["verdict"] == verdict.DIFFERENT):
        sys.exit(1 if found["verdict"] == verdict.DIFFERENT else 2)


def run_table(args: argparse.Namespace) -> None:
    """Print the scores as a table."""
    from mergemoe.artifacts import paths
    from mergemoe.report import metrics

    print(metrics.scores_table(metrics.read_metrics(Path(paths.RESULTS))), end="")


def run_export(args: argparse.Namespace) -> None:
    """Copy a run's checkpoint with its full model card, after verifying both."""
    from mergemoe.report import export

    export.export_run(args.name, Path(args.folder), args.packed)
    how = (
        "a program that reads compressed-tensors (docs/serving.md)"
        if args.packed
        else f"mergemoe.load({args.folder!r})"
    )
    print(f"{args.folder}: load it with {how}")


if __name__ == "__main__":
    main()
