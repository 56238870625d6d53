"""Text of an audit's findings, for a terminal."""

from collections.abc import Mapping
from typing import Any

from mergemoe.report.metrics import shown
from mergemoe.text_table import aligned_table

LISTED = 12  # facts of one kind


def format_audit(found: Mapping[str, Any]) -> str:
    """Return an audit's findings (workflow/ledger/audit.py) for a terminal."""
    parts = [f"audit of {found['revision'][:12]}", _table(found), *_facts(found), f"verdict: {verdict(found)}"]
    return "\n\n".join(parts)


def verdict(found: Mapping[str, Any]) -> str:
    """Return the conclusion of an audit in a sentence."""
    again, other = found.get("again"), [name for name, one in found["stages"].items() if not one["as_recorded"]]
    if found["identical"] and again:
        return f"identical. All {again['identical']} files came out again, byte for byte."
    if found["identical"]:
        return "identical. Every byte is as recorded, and the provenance holds."
    if found["strays"] or any(one["faults"] for one in found["stages"].values()):
        return "NOT as recorded: the artifacts above fail their checks."
    if other:
        return f"rebuilt since recording: provenance is valid, but files differ from dvc.lock from stage {other[0]} on."
    if found.get("parts_at"):
        return f"as recorded, but a rerun gives other results, from the stage {found['parts_at']} on."
    if again and again["differ"]:
        return "as recorded, and a rerun says the same; only the provenance inside differs (code or inputs)."
    return "as recorded, but metrics.json is not the committed one."


def _table(found: Mapping[str, Any]) -> str:
    rows = [["stage", "files", "MB", "bytes", "provenance", *(["rerun"] if "again" in found else [])]]
    for name, one in found["stages"].items():
        holds = f"{len(one['faults'])} faults" if one["faults"] else "holds"
        rows.append([name, str(one["files"]), f"{one['bytes'] / 1e6:,.1f}", _bytes(one), holds])
        if "again" in found:
            rows[-1].append(_again(one))
    return aligned_table(rows, "<>><")


def _bytes(stage: Mapping[str, Any]) -> str:
    if not stage["as_recorded"]:
        return "DIFFER"
    return "not pushed" if stage["kept_out"] else "as recorded"


def _again(stage: Mapping[str, Any]) -> str:
    if not stage["differ"]:
        return "identical"
    if not stage["other_payload"]:
        return f"{len(stage['differ'])} made by other code, same payload"
    size = "" if stage["largest"] is None else f", numbers by up to {stage['largest']:.1e}"
    return f"{len(stage['differ'])} DIFFER{size}"


def _facts(found: Mapping[str, Any]) -> list[str]:
    lists = {
        "not the bytes of dvc.lock": [path for one in found["stages"].values() for path in one["other_bytes"]],
        "does not hold": [fact for one in found["stages"].values() for fact in one["faults"]] + list(found["strays"]),
        "rerun": [path for one in found["stages"].values() for path in one.get("other_payload", [])],
        _metrics(found["metrics"]): [_number(key, *row) for key, row in found["metrics"]["differ"].items()],
        "code that was edited since": list(found["edited"]),
        "recorded elsewhere": list(found["environment"]),
    }
    parts = [_list(name, list(dict.fromkeys(facts))) for name, facts in lists.items() if facts]
    same = f"metrics.json: all {found['metrics']['numbers']} numbers are the committed ones"
    return parts if found["metrics"]["differ"] else [*parts, same]


def _list(name: str, facts: list[str]) -> str:
    more = [f"  and {len(facts) - LISTED} more"] if len(facts) > LISTED else []
    return "\n".join([f"{name}:", *(f"  {fact}" for fact in facts[:LISTED]), *more])


def _metrics(metrics: Mapping[str, Any]) -> str:
    apart = [abs(b - a) / error for a, b, error in metrics["differ"].values() if error and None not in (a, b)]
    most = f", by at most {max(apart):.2g} standard errors if they have one" if apart else ""
    return f"metrics.json: {len(metrics['differ'])} of {metrics['numbers']} numbers are not the committed ones{most}"


def _number(key: str, committed: float | None, found: float | None, error: float | None) -> str:
    if committed is None or found is None:
        return f"{key}: {shown(committed)} committed, {shown(found)} here"
    if not error:
        return f"{key}: {committed!r} committed, {found!r} here"
    apart = (found - committed) / error
    return f"{key}: {shown(committed, error)} committed, {shown(found)} here, {apart:+.2f} standard errors"
