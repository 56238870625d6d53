"""Audit of a recorded run: compare files with the record, and optionally compute them again; verdict.py judges.

Without a revision the working tree is audited; with one, a clone of it in a temporary folder. With a rerun, everything
is computed again in another clone, from the checkpoint and the text alone, and compared file by file.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergemoe.artifacts.stages import STAGES, dvc_stages
from mergemoe.artifacts.verify import Claims
from mergemoe.errors import UserError
from mergemoe.report import missing_results
from mergemoe.workflow.comparison import ties, verdict
from mergemoe.workflow.ledger import (
    commands,
    compare,
    dvc_lock,
    record,
    recorded_summaries,
    rendering,
    scores,
    verify_results,
)
from mergemoe.workflow.ledger.clone import checkout_artifacts, temporary_clone
from mergemoe.workflow.ledger.environments import recorded_environment, rerun_environment
from mergemoe.workflow.ledger.verify_results import Fault


def audit_project(
    root: Path, revision: str | None = None, rerun: bool = False, environment: bool = False
) -> dict[str, Any]:
    """Return the findings of an audit, and the verdict on them; `identical` tells whether nothing at all differs.

    Args:
        root: the project's folder.
        revision: a git revision; None for the working tree.
        rerun: whether everything is computed again.
        environment: whether that is done with the packages that the revision has locked.

    Raises:
        UserError: if there is nothing to audit, or the recomputation fails.
    """
    record.check_project(root)
    if environment and not rerun:
        raise UserError("--environment installs the packages of a rerun. Add --rerun, or leave it out")
    commit = record.recorded_commit(root, revision) if revision else record.commit_of(root, "HEAD")
    dirty = commands.run_program(root, "git", "status", "--porcelain", "-uno").splitlines()
    if rerun and not revision and dirty:
        raise UserError(
            f"--rerun computes the commit again, but {dirty[0][3:]} differs from it. Commit it, or name a revision"
        )
    if revision is None:
        found = _audit(root, root, commit, rerun, environment)
    else:
        with temporary_clone(root, commit) as tree:
            checkout_artifacts(tree)
            found = _audit(root, tree, commit, rerun, environment)
    judged = {"verdict": verdict.verdict(found), "reasons": verdict.reasons(found)}
    kept = {"dvc.lock", "dvc.yaml", str(recorded_summaries.FILE), str(recorded_environment.FILE)}
    uncommitted = [line[3:] for line in dirty if line[3:] in kept] if revision is None else []
    return {"revision": commit, "uncommitted": uncommitted, **found, **judged}


def _audit(root: Path, tree: Path, commit: str, rerun: bool, environment: bool) -> dict[str, Any]:
    locked = dvc_lock.read_lock(tree)
    kept_out = commands.kept_out(tree)
    claims, rules = commands.ask_ledger(tree)["claims"], commands.stage_rules(tree)
    summaries = recorded_summaries.read_summaries(tree)
    faults = verify_results.check_results(tree, claims, kept_out) + _unlocked(claims, locked)
    faults = faults or rendering.check_report(tree, claims, locked)
    of = {name: [fault for fault in faults if fault.stage in rules.get(name, ())] for name in locked}
    in_order = [name for name in dict.fromkeys([*dvc_stages(), *locked]) if name in locked]
    stages = {name: _stage(name, tree, locked, of[name], kept_out, summaries) for name in in_order}
    placed = {fault for found in of.values() for fault in found}
    strays = [fault.fact for fault in faults if fault not in placed]  # of no run, or of a stage that is not locked
    found: dict[str, Any] = {"stages": stages, "strays": strays, "edited": _edited(tree, locked)}
    if rerun:
        with temporary_clone(root, commit) as again:
            python, found["rerun_in"] = rerun_environment.of_rerun(again, environment)
            _compute(again, python)
            found |= _rerun(stages, tree, again, locked, summaries)
            here = recorded_environment.gather_logs(again, claims)
            _add_ties(stages, again)
            found["metrics"] = scores.compare_scores(root, commit, again)
    else:
        here = recorded_environment.gather_logs(tree, claims)
        _add_ties(stages, tree)
        found["metrics"] = scores.compare_scores(root, commit, tree)
    found["environment"] = recorded_environment.environment_differences(tree, recorded_environment.environments(here))
    held = all(one["as_recorded"] and not one["faults"] for one in stages.values()) and not strays
    same = all(not one.get("differ") for one in stages.values())
    found["holds"], found["identical"] = held, held and same and not found["metrics"]["differ"]
    return found


def _unlocked(claims: Claims, locked: dict[str, Any]) -> list[Fault]:
    """Return a fault for each artifact that params.yaml asks for and dvc.lock lacks, because it was cut or edited."""
    outs = [entry.path for entry in dvc_lock.lock_entries(locked, "outs")]
    wanted = [(STAGES[claim["stage"]], path) for path, claim in claims.items()]
    paths = [(stage.name, path) for stage, output in wanted if stage.dvc for path in stage.files(output)]
    lacking = [(name, path) for name, path in paths if not verify_results.is_below(path, outs)]
    return [Fault(name, path, f"{path} is not in dvc.lock") for name, path in lacking]


def _compute(tree: Path, python: Path) -> None:
    """Run a clone's workflow from nothing; if it fails, the error quotes the logs, because the clone is deleted."""
    for path in verify_results.result_files(tree):  # metrics.json and its tables, which git has
        (tree / path).unlink()
    try:
        quiet = ("--quiet", "host", "rules", "reason")
        commands.run_program(tree, "snakemake", "--cores", "all", *quiet, shown=True, python=python)
    except UserError as error:
        said = dict.fromkeys(map(missing_results.last_words, sorted((tree / "logs").rglob("*.log"))))
        told = [words for words in said if not words.startswith(missing_results.MADE)]
        raise UserError("\n  ".join([str(error), *told])) from None


def _stage(
    name: str,
    tree: Path,
    locked: dict[str, Any],
    faults: Sequence[Fault],
    kept_out: Collection[str],
    summaries: Mapping[str, Any],
) -> dict[str, Any]:
    """Return how one stage's outputs compare with dvc.lock, with the recorded summaries and with their provenance."""
    outs = list(dvc_lock.lock_entries({name: locked[name]}, "outs"))
    data = [entry for entry in dvc_lock.lock_entries({name: locked[name]}, "deps") if not _is_code(entry.path)]
    here = [entry for entry in [*outs, *data] if entry.path not in kept_out]
    wrong = [entry.path for entry in here if dvc_lock.dvc_digest(tree / entry.path) != entry.md5]
    own = [entry.path for entry in outs]
    files = [tree / path for path in verify_results.result_files(tree) if verify_results.is_below(path, own)]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "as_recorded": not wrong,
        "kept_out": sorted(entry.path for entry in outs if entry.path in kept_out),
        "other_bytes": sorted(set(wrong)),
        "apart": _apart(compare.compare_recorded(tree, summaries, set(wrong) & set(own))),
        "faults": [fault.fact for fault in faults],
    }


def _apart(differences: Sequence[compare.Difference]) -> dict[str, Any]:
    """Return {path: how it differs} of results that are not the same."""
    return {one.path: one.apart._asdict() for one in differences if one.apart != ([], {})}


def _is_code(path: str) -> bool:
    return path.endswith(".py") or path in {"mergemoe/report/templates", "mergemoe/templates"}


def _edited(tree: Path, locked: dict[str, Any]) -> list[str]:
    """Return the code whose text was edited since recording; provenance tells whether its behaviour changed."""
    code = {entry.path: entry.md5 for entry in dvc_lock.lock_entries(locked, "deps") if _is_code(entry.path)}
    return [path for path, md5 in code.items() if dvc_lock.dvc_digest(tree / path) != md5]


def _rerun(
    stages: dict[str, Any], tree: Path, again: Path, locked: dict[str, Any], summaries: Mapping[str, Any]
) -> dict[str, Any]:
    """Add the comparison with the rerun to every stage; return the first stage whose results differ."""
    kept_out = {path for one in stages.values() for path in one["kept_out"]}
    same = {
        e.path
        for e in dvc_lock.lock_entries(locked, "outs")
        if e.path in kept_out and dvc_lock.dvc_digest(again / e.path) == e.md5
    }
    identical, differences = compare.compare_results(tree, again, kept_out)
    differences += compare.compare_recorded(again, summaries, kept_out - same)
    outs = [(entry.stage, entry.path) for entry in dvc_lock.lock_entries(locked, "outs")]
    for name, one in stages.items():
        own = [path for stage, path in outs if stage == name]
        differ = [d for d in differences if verify_results.is_below(d.path, own)]
        one |= {
            "differ": [d.path for d in differ],
            "other_payload": [d.path for d in differ if d.payload],
            "apart": {**one["apart"], **_apart(differ)},
        }
    parted = [name for name, one in stages.items() if one["other_payload"]]
    return {"again": {"identical": identical, "differ": len(differences)}, "parts_at": parted[0] if parted else None}


def _add_ties(stages: dict[str, Any], tree: Path) -> None:
    """Add to every stage its near-ties, in words, and the results that scores judge, because they follow from one."""
    found = ties.near_ties(
        stages, lambda path: compare.inputs_of(tree / path), lambda path: compare.parts_of(tree / path)
    )
    for one in stages.values():
        one |= {
            "ties": [found.words[path] for path in one["apart"] if path in found.words],
            "by_scores": [path for path in one["apart"] if path in found.by_scores],
        }
