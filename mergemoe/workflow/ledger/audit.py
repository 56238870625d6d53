"""Audit: is what was published what was recorded, and does it come out again?

Without a revision the tree is audited as it lies there; with one, a clone of it in a temporary folder. With a rerun,
everything is computed again in another clone, from the checkpoint and the text alone, and compared file by file.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mergemoe.artifacts.paths import METRICS
from mergemoe.errors import UserError
from mergemoe.report import missing_results
from mergemoe.workflow.ledger import commands, compare, dvc_lock, record, recorded_environment, verify_results
from mergemoe.workflow.ledger.clone import bring, clone


def audit(root: Path, revision: str | None = None, rerun: bool = False) -> dict[str, Any]:
    """Return all that an audit found; `identical` in it says whether nothing at all differs.

    Raises:
        UserError: where there is nothing to audit, or the recomputation fails.
    """
    record.check_project(root)
    commit = record.recorded_commit(root, revision) if revision else record.commit_of(root, "HEAD")
    if rerun and not revision and (dirty := commands.run(root, "git", "status", "--porcelain", "-uno").splitlines()):
        raise UserError(
            f"--rerun computes the commit again, and {dirty[0][3:]} differs from it: commit, or name a revision"
        )
    if revision is None:
        found = _audit(root, root, commit, rerun)
    else:
        with clone(root, commit) as tree:
            bring(tree)
            found = _audit(root, tree, commit, rerun)
    return {"revision": commit, "environment": recorded_environment.differences(root), **found}


def _audit(root: Path, tree: Path, commit: str, rerun: bool) -> dict[str, Any]:
    locked = dvc_lock.read(tree)
    kept_out = commands.kept_out(tree)
    faults = verify_results.check(tree, commands.ledger(tree)["claims"], kept_out)
    rules = commands.rules(tree)
    stages = {
        name: _stage(name, tree, locked, [f for f in faults if f.stage in rules[name]], kept_out) for name in locked
    }
    strays = [fault.fact for fault in faults if not fault.stage]
    found: dict[str, Any] = {"stages": stages, "strays": strays, "edited": _edited(tree, locked)}
    if rerun:
        with clone(root, commit) as again:
            _compute(again)
            found |= _rerun(stages, tree, again, locked)
            found["metrics"] = _metrics(root, commit, again)
    else:
        found["metrics"] = _metrics(root, commit, tree)
    held = all(one["as_recorded"] and not one["faults"] for one in stages.values()) and not strays
    same = all(not one.get("differ") for one in stages.values())
    found["holds"], found["identical"] = held, held and same and not found["metrics"]["differ"]
    return found


def _compute(tree: Path) -> None:
    """Run a clone's workflow from nothing; where it fails, say what the logs say, for the clone is gone then."""
    for path in verify_results.files(tree):  # metrics.json and its tables, which git has
        (tree / path).unlink()
    try:
        commands.run(tree, "snakemake", "--cores", "all", "--quiet", "host", "rules", "reason", shown=True)
    except UserError as error:
        said = dict.fromkeys(map(missing_results.last_words, sorted((tree / "logs").rglob("*.log"))))
        told = [words for words in said if not words.startswith(missing_results.MADE)]
        raise UserError("\n  ".join([str(error), *told])) from None


def _stage(
    name: str, tree: Path, locked: dict[str, Any], faults: Sequence[verify_results.Fault], kept_out: Collection[str]
) -> dict[str, Any]:
    """Return what one stage's outputs are, beside what dvc.lock and provenance say of them."""
    outs = list(dvc_lock.entries({name: locked[name]}, "outs"))
    data = [entry for entry in dvc_lock.entries({name: locked[name]}, "deps") if not _is_code(entry.path)]
    here = [entry for entry in [*outs, *data] if entry.path not in kept_out]
    wrong = [entry.path for entry in here if dvc_lock.digest(tree / entry.path) != entry.md5]
    files = [
        tree / path for path in verify_results.files(tree) if verify_results.below(path, [entry.path for entry in outs])
    ]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "as_recorded": not wrong,
        "kept_out": sorted(entry.path for entry in outs if entry.path in kept_out),
        "other_bytes": sorted(set(wrong)),
        "faults": [fault.fact for fault in faults],
    }


def _is_code(path: str) -> bool:
    return path.endswith(".py") or path in {"mergemoe/report/templates", "mergemoe/templates"}


def _edited(tree: Path, locked: dict[str, Any]) -> list[str]:
    """Return the code that reads otherwise than when it was recorded; whether it does otherwise, provenance tells."""
    code = {entry.path: entry.md5 for entry in dvc_lock.entries(locked, "deps") if _is_code(entry.path)}
    return [path for path, md5 in code.items() if dvc_lock.digest(tree / path) != md5]


def _rerun(stages: dict[str, Any], tree: Path, again: Path, locked: dict[str, Any]) -> dict[str, Any]:
    """Add to every stage how its files came out again; return the first stage where they are others."""
    kept_out = {path for one in stages.values() for path in one["kept_out"]}
    same = {
        e.path
        for e in dvc_lock.entries(locked, "outs")
        if e.path in kept_out and dvc_lock.digest(again / e.path) == e.md5
    }
    identical, differences = compare.compare(tree, again, same)
    outs = [(entry.stage, entry.path) for entry in dvc_lock.entries(locked, "outs")]
    for name, one in stages.items():
        own = [path for stage, path in outs if stage == name]
        differ = [d for d in differences if verify_results.below(d.path, own)]
        sizes = [d.largest for d in differ if d.largest is not None]
        one |= {
            "differ": [d.path for d in differ],
            "other_payload": [d.path for d in differ if d.payload],
            "largest": max(sizes, default=None),
        }
    parted = [name for name, one in stages.items() if one["other_payload"]]
    return {"again": {"identical": identical, "differ": len(differences)}, "parts_at": parted[0] if parted else None}


def _metrics(root: Path, commit: str, tree: Path) -> dict[str, Any]:
    """Return the numbers of metrics.json that are not those of the commit, with their standard errors."""
    known = commands.run(root, "git", "ls-tree", commit, METRICS)
    committed = _flat(json.loads(commands.run(root, "git", "show", f"{commit}:{METRICS}"))) if known else {}
    path = tree / METRICS
    found = _flat(json.loads(path.read_text())) if path.is_file() else {}
    keys = sorted(committed.keys() | found.keys())
    differ = {key: [committed.get(key), found.get(key), committed.get(f"{key}_stderr")] for key in keys}
    return {"numbers": len(keys), "differ": {key: row for key, row in differ.items() if row[0] != row[1]}}


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    models = {f"{model}/full": one["full"] for model, one in metrics.items()}
    models |= {f"{model}/{run}": scores for model, one in metrics.items() for run, scores in one["runs"].items()}
    return {f"{model} {key}": value for model, scores in models.items() for key, value in scores.items()}
