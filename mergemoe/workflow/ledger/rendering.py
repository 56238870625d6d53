"""Render the report of a tree again: its numbers, tables, page and cards must be what the other results give."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts import paths, store
from mergemoe.artifacts.verify import Claims
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands, dvc_lock
from mergemoe.workflow.ledger.verify_results import Fault

SEALS = {"payload", "seal"}  # of the files that are compared
FIX = (
    "is not what the results give now: it was edited and sealed again, or written by other versions of the packages. "
    "`snakemake --forcerun report` writes it"
)


def check_report(tree: Path, claims: Claims, locked: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for each file of the report that is not what the stage `report` writes of the results in a tree.

    Files with the bytes of dvc.lock were written by it.

    Args:
        tree: the project's folder; its artifacts hold.
        claims: the expected provenance of every artifact.
        locked: the stages of dvc.lock.
    """
    claim = claims.get(paths.REPORTED)
    recorded = dvc_lock.lock_entries({name: one for name, one in locked.items() if name == "report"}, "outs")
    if claim is None or all(dvc_lock.dvc_digest(tree / entry.path) == entry.md5 for entry in recorded):
        return []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, paths.RESULTS)
        outputs = {
            "metrics": paths.METRICS,
            "quality": paths.QUALITY,
            "errors": paths.ERRORS,
            "page": paths.PAGE,
            "cards": paths.CARDS,
            "out": paths.REPORTED,
        }
        (place / "report").mkdir(parents=True)
        options = [each for name, path in outputs.items() for each in (f"--{name}", str(paths.below(place, path)))]
        made = ("--cfg", json.dumps(claim["params"]), "--code", claim["code"], "--results", paths.RESULTS)
        try:
            commands.run_program(tree, str(commands.PYTHON), "-m", "stages.report", *made, *options)
        except UserError as error:
            return [Fault("report", paths.REPORTED, f"the results give no report: {error}")]
        rendered = store.read_json(paths.below(place, paths.REPORTED))
    here = store.read_json(tree / paths.REPORTED)
    files, others = here.pop("files"), rendered.pop("files")
    names = [name for name in sorted(files.keys() | others.keys()) if files.get(name) != others.get(name)]
    found = [os.path.normpath(Path(paths.REPORTED).parent / name) for name in names]
    for record in (here, rendered):
        record["provenance"] = {key: record["provenance"][key] for key in record["provenance"].keys() - SEALS}
    if here != rendered:
        found.append(paths.REPORTED)
    return [Fault("report", file, f"{file} {FIX}") for file in found]
