"""The command `mergemoe`."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergemoe.errors import UserError

if TYPE_CHECKING:
    from mergemoe.workflow.config.params import Params


def main() -> None:
    """Parse the command line and run one command; a user's mistake ends it in one clear line."""
    parser = argparse.ArgumentParser(
        prog="mergemoe", description="Compress Mixture-of-Experts models by merging experts."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("inspect", help="what a checkpoint is, and what each ratio would save")
    command.add_argument("model", help="a checkpoint folder")
    command.set_defaults(run=run_inspect)

    command = commands.add_parser("fetch", help="bring a model of the hub at one commit, or all that params.yaml names")
    command.add_argument("model", nargs="?", help="its id, such as Qwen/Qwen3-30B-A3B")
    command.add_argument("--revision", metavar="COMMIT", help="the full commit hash")
    command.add_argument("--params", metavar="FILE", help="bring every model of this params.yaml that has a revision")
    command.set_defaults(run=run_fetch)

    command = commands.add_parser(
        "plan", help="parameters, bytes, jobs, disk, tokens, what a cluster is asked for; before anything runs"
    )
    command.add_argument("--params", default="params.yaml", metavar="FILE")
    command.set_defaults(run=run_plan)

    command = commands.add_parser("table", help="the scores of results/metrics.json as a table")
    command.set_defaults(run=run_table)

    command = commands.add_parser("export", help="copy a run's checkpoint with its full card")
    command.add_argument("name", metavar="RUN", help="MODEL/CALIBRATE/CLUSTER/SOLVE")
    command.add_argument("folder", metavar="DIR", help="a new folder")
    command.set_defaults(run=run_export)

    command = commands.add_parser("record", help="put a finished run into DVC's ledger, if everything in it holds")
    command.set_defaults(run=run_record)

    command = commands.add_parser("restore", help="bring back a recorded revision: code, artifacts, Snakemake's notes")
    command.add_argument("revision", metavar="REV", help="of git")
    command.set_defaults(run=run_restore)

    command = commands.add_parser("audit", help="whether results are what was recorded, and come out again")
    command.add_argument("revision", metavar="REV", nargs="?", help="of git; without it, the tree as it is")
    command.add_argument("--rerun", action="store_true", help="compute everything again in a temporary clone")
    command.set_defaults(run=run_audit)

    args = parser.parse_args()
    try:
        args.run(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def run_inspect(args: argparse.Namespace) -> None:
    """Print a checkpoint's family, layers, experts and sizes; or why it cannot be compressed."""
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
    print("\nThis version can compress it, as far as config.json and the headers of its weights tell.")


def run_fetch(args: argparse.Namespace) -> None:
    """Bring models of the hub, and say where they are and where that is written down."""
    from mergemoe.checkpoints import hub, model_folder

    if (args.model is None) == (args.params is None):
        raise UserError("name one model, with --revision; or a params.yaml, with --params")
    wanted = [(args.model, args.revision)]
    if args.params:
        chosen = _read_params(args.params).model.values()
        wanted = list(dict.fromkeys((model.path, model.revision) for model in chosen if model.revision))
        if not wanted:
            raise UserError(f"{args.params}: no choice of `model` has a `revision`, so none is of the hub")
    for model, revision in wanted:
        record = hub.fetch_model(model, revision)
        size = sum(file["size"] for file in json.loads(record.read_text())["files"].values())
        print(f"{model}: {size / 1e9:.2f} GB in {model_folder.locate_checkpoint(model, revision)}")
        print(f"Files and sha256 stand in {record}: keep it in git.")


def run_plan(args: argparse.Namespace) -> None:
    """Print what params.yaml will cost."""
    from mergemoe.workflow.planning import plan, preflight, slurm, slurm_table

    params = _read_params(args.params)
    preflight.check_params(params)
    print(plan.plan_text(params, Path("results")))
    if slurm.PROFILE.is_dir():
        print(f"\n{slurm_table.slurm_text(params)}")


def _read_params(path: str) -> "Params":
    import yaml

    from mergemoe.workflow.config.params import read_params

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run this beside a params.yaml, or name one with --params")
    return read_params(yaml.safe_load(Path(path).read_text()), path)


def run_record(args: argparse.Namespace) -> None:
    """Record what the workflow made."""
    from mergemoe.workflow.ledger import record

    print(record.record_run(Path.cwd()))


def run_restore(args: argparse.Namespace) -> None:
    """Bring back what was recorded."""
    from mergemoe.workflow.ledger.restore import restore_revision

    print(restore_revision(Path.cwd(), args.revision))


def run_audit(args: argparse.Namespace) -> None:
    """Print what an audit found, write it as JSON, and end with status 1 unless nothing differs."""
    from mergemoe.artifacts import atomic
    from mergemoe.workflow.ledger import audit_text
    from mergemoe.workflow.ledger.audit import audit_project

    found = audit_project(Path.cwd(), args.revision, args.rerun)
    path = Path("logs", "audit", f"{found['revision'][:12]}.json")
    with atomic.atomic(path) as file:
        file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{audit_text.format_audit(found)}\n({path} has all of it)")
    if not found["identical"]:
        sys.exit(1)


def run_table(args: argparse.Namespace) -> None:
    """Print the scores."""
    from mergemoe.artifacts import paths
    from mergemoe.report import metrics

    path = Path(paths.METRICS)
    if not path.is_file():
        raise UserError(f"{path} is not there: run `snakemake --cores all` first")
    print(metrics.scores_table(json.loads(path.read_text())), end="")


def run_export(args: argparse.Namespace) -> None:
    """Copy a checkpoint that is what was recorded, with the card that has its scores."""
    from huggingface_hub import ModelCard

    from mergemoe.artifacts import atomic, paths, provenance, store

    source, card = Path(paths.MODELS, args.name), Path(paths.CARDS, f"{args.name}.md")
    if not (source / "provenance.json").is_file() or not card.is_file():
        found = Path(paths.MODELS).glob("*/*/*/*/config.json")
        done = sorted(str(path.parent.relative_to(paths.MODELS)) for path in found)
        raise UserError(f"no finished run {args.name}; there are: {', '.join(done) or 'none'}")
    listed = source / "provenance.json"
    made = json.loads(ModelCard.load(card).data["provenance"])
    if made["inputs"].get(listed.as_posix()) != provenance.content(listed):
        raise UserError(f"{card} has the scores of another checkpoint: run `snakemake` to the end, then export")
    if Path(args.folder).exists():
        raise UserError(f"{args.folder} exists: export writes a new folder")
    store.check_files(source, store.read_json(listed)["files"])
    with atomic.atomic(args.folder) as folder:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*"))
        shutil.copyfile(card, folder / "README.md")
    print(f"{args.folder}: load it with mergemoe.load({args.folder!r})")


if __name__ == "__main__":
    main()
