"""Text of an audit's findings, for a terminal."""

from collections.abc import Mapping
from typing import Any

from mergemoe.report.metrics import shown
from mergemoe.text_table import aligned_table
from mergemoe.workflow.comparison import verdict

LISTED = 12  # facts of one kind


def format_audit(found: Mapping[str, Any]) -> str:
    """Return an audit's findings (workflow/ledger/audit.py) for a terminal."""
    parts = [f"audit of {found['revision'][:12]}", aligned_table(stage_rows(found), "<>><"), *_facts(found)]
    return "\n\n".join([*parts, f"verdict: {found['verdict']}. {conclusion(found)}"])


def conclusion(found: Mapping[str, Any]) -> str:
    """Return the sentence that says what the verdict rests on."""
    again, stages = found.get("again"), found["stages"]
    if found["verdict"] == verdict.IDENTICAL:
        came = f"All {again['identical']} files came out again, byte for byte." if again else ""
        absent = ", ".join(path for one in stages.values() for path in one["kept_out"])
        said = f"Every byte but those of {absent} (not pushed) is" if absent else "Every byte is"
        return came or f"{said} as recorded, and the provenance holds."
    if found["verdict"] == verdict.EQUIVALENT:
        sizes = {name: verdict.largest(one) or 0.0 for name, one in stages.items()}
        ties = [tie for one in stages.values() for tie in one["ties"]]
        most = max(sizes, key=sizes.__getitem__)
        differ = [f"numbers by up to {sizes[most]:.1e} of their norm ({most})"] if sizes[most] else []
        if found["metrics"]["differ"]:
            differ.append(f"scores by at most {_apart(found['metrics']):.2g} standard errors")
        if not differ and not ties:
            return "All results say the same; what their provenance says of code or inputs differs."
        but = f" but {len(ties)}, where two alternatives nearly tie" if ties else ""
        rounding = f"; rounding moves {' and '.join(differ)}" if differ else ""
        return f"Every decision is as recorded{but}{rounding}."
    if found["strays"] or any(one["faults"] for one in stages.values()):
        return "The artifacts above fail their checks."
    if other := [name for name, one in stages.items() if not one["as_recorded"]]:
        return f"Provenance holds, but results differ from the recorded ones, from the stage {other[0]} on."
    if found.get("parts_at"):
        return f"All is as recorded, but a rerun gives other results, from the stage {found['parts_at']} on."
    return "All is as recorded, but metrics.json is not the committed one."


def stage_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the head of the table of stages, and a row for each."""
    rows = [["stage", "files", "MB", "bytes", "provenance", *(["rerun"] if "again" in found else [])]]
    for name, one in found["stages"].items():
        holds = f"{len(one['faults'])} faults" if one["faults"] else "holds"
        rows.append([name, str(one["files"]), f"{one['bytes'] / 1e6:,.1f}", _bytes(one), holds])
        if "again" in found:
            rows[-1].append(_again(one))
    return rows


def _bytes(stage: Mapping[str, Any]) -> str:
    if not stage["as_recorded"]:
        return _size(stage)
    return "not pushed" if stage["kept_out"] else "as recorded"


def _again(stage: Mapping[str, Any]) -> str:
    if not stage["differ"]:
        return "identical"
    if not stage["other_payload"]:
        return f"{len(stage['differ'])} made by other code, same payload"
    return f"{len(stage['differ'])}: {_size(stage)}"


def _size(stage: Mapping[str, Any]) -> str:
    size = verdict.largest(stage)
    if size is None:
        return "DIFFER"
    after = len(stage["by_scores"]) - len(stage["ties"])
    counts = {"near-ties": len(stage["ties"]), "that follow": after}
    told = [f"{count} {name}" for name, count in counts.items() if count]
    if size:
        told.append(f"numbers by up to {size:.1e}")
    return ", ".join(told) or "the same numbers"


def _facts(found: Mapping[str, Any]) -> list[str]:
    lists = {
        "not the bytes of dvc.lock": [path for one in found["stages"].values() for path in one["other_bytes"]],
        "does not hold": [fact for one in found["stages"].values() for fact in one["faults"]] + list(found["strays"]),
        "rerun": [path for one in found["stages"].values() for path in one.get("other_payload", [])],
        "near-ties": [tie for one in found["stages"].values() for tie in one["ties"]],
        "more than rounding": _beyond(found),
        moved_scores(found["metrics"]): [_number(key, *row) for key, row in found["metrics"]["differ"].items()],
        "the record is not the committed one": list(found["uncommitted"]),
        "code that was edited since": list(found["edited"]),
        "computed again with": _rerun_in(found.get("rerun_in", {})),
        "recorded elsewhere": list(found["environment"]),
    }
    parts = [_list(name, list(dict.fromkeys(facts))) for name, facts in lists.items() if facts]
    numbers, differ = found["metrics"]["numbers"], found["metrics"]["differ"]
    same = [f"metrics.json: all {numbers} numbers are the committed ones"] if numbers and not differ else []
    return parts + same


def _beyond(found: Mapping[str, Any]) -> list[str]:
    """Return the reasons that are no faults."""
    faults = {fact for one in found["stages"].values() for fact in one["faults"]} | set(found["strays"])
    return [reason for reason in found["reasons"] if reason not in faults]


def _rerun_in(place: Mapping[str, Any]) -> list[str]:
    return [f"the packages of {place['lock']}, Python {place['python']}"] if place.get("lock") else []


def _list(name: str, facts: list[str]) -> str:
    more = [f"  and {len(facts) - LISTED} more"] if len(facts) > LISTED else []
    return "\n".join([f"{name}:", *(f"  {fact}" for fact in facts[:LISTED]), *more])


def moved_scores(metrics: Mapping[str, Any]) -> str:
    """Return how many numbers of metrics.json differ, and by how many standard errors at most."""
    apart = _apart(metrics)
    most = f", by at most {apart:.2g} standard errors if they have one" if apart else ""
    return f"metrics.json: {len(metrics['differ'])} of {metrics['numbers']} numbers are not the committed ones{most}"


def _apart(metrics: Mapping[str, Any]) -> float:
    """Return by how many standard errors a score differs, at most."""
    rows = metrics["differ"].values()
    return max((abs(b - a) / error for a, b, error in rows if error and None not in (a, b)), default=0.0)


def _number(key: str, committed: float | None, found: float | None, error: float | None) -> str:
    if committed is None or found is None:
        return f"{key}: {shown(committed)} committed, {shown(found)} here"
    if not error:
        return f"{key}: {committed!r} committed, {found!r} here"
    apart = (found - committed) / error
    return f"{key}: {shown(committed, error)} committed, {shown(found)} here, {apart:+.2f} standard errors"
