"""Compare results file by file: same bytes, same payload, or how the summaries differ (summary.py)."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mergemoe.artifacts import digests, provenance
from mergemoe.artifacts.reading import reading
from mergemoe.errors import ArtifactError
from mergemoe.progress import track
from mergemoe.workflow.comparison import summary
from mergemoe.workflow.comparison.json_parts import THE_FILE
from mergemoe.workflow.comparison.summary import Apart
from mergemoe.workflow.ledger import verify_results

WHOLE = Apart([THE_FILE], {})


class Difference(NamedTuple):
    """Two files of one path that differ."""

    path: str
    apart: Apart
    payload: bool  # whether the payload differs, and not only the provenance


def compare_results(before: Path, after: Path, known: Collection[str] = ()) -> tuple[int, list[Difference]]:
    """Return the number of identical results below two project folders, and every other.

    Folders in `known` are known to be the same by their hashes; `before` may lack them.
    """
    paths = sorted({*verify_results.result_files(before), *verify_results.result_files(after)})
    compared = [path for path in paths if not verify_results.is_below(path, known)]
    found = [_file(before, after, path) for path in track(compared, "artifacts compared")]
    differences = [one for one in found if one is not None]
    return len(paths) - len(differences), differences


def compare_recorded(root: Path, recorded: Mapping[str, Any], paths: Collection[str]) -> list[Difference]:
    """Return every result among `paths`, or recorded below them, whose summary is not the recorded one."""
    here = {path for path in verify_results.result_files(root) if summary.has_summary(path)}
    both = sorted(path for path in here | recorded.keys() if verify_results.is_below(path, paths))
    found: list[Difference] = []
    for path in track(both, "results compared"):
        apart = WHOLE
        if path in here and path in recorded:
            try:
                apart = summary.compare_summaries(recorded[path], summary.summarize(root / path))
            except ArtifactError:  # it is among the faults
                apart = WHOLE
        if apart != ([], {}):
            found.append(Difference(path, apart, payload=True))
    return found


def inputs_of(path: Path) -> list[str]:
    """Return the files and folders that a result was made from; none if it cannot be read."""
    for own in (path, path.parent / "provenance.json"):  # files of a checkpoint have none of their own
        try:
            with reading(own):
                made = provenance.read_provenance(own) if own.is_file() else None
                if made is not None:
                    return list(made["inputs"])
        except ArtifactError:  # it is among the faults
            continue
    return []


def parts_of(path: Path) -> list[str]:
    """Return the names of a result's parts; none if it cannot be read."""
    try:
        return list(summary.summarize(path)) if path.is_file() else []
    except ArtifactError:  # it is among the faults
        return []


def _file(before: Path, after: Path, path: str) -> Difference | None:
    one, other = before / path, after / path
    if not (one.is_file() and other.is_file()):
        return Difference(path, WHOLE, payload=True)
    if digests.sha256(one) == digests.sha256(other):
        return None
    try:
        # Of an artifact the payload's digest comes first: made by other code, it may say the same.
        if provenance.read_provenance(one) is not None and provenance.content_digest(one) == provenance.content_digest(
            other
        ):
            return Difference(path, Apart([], {}), payload=False)
        if not summary.has_summary(path):  # it shows what others hold
            return Difference(path, Apart([], {}), payload=True)
        return Difference(path, summary.compare_summaries(*map(summary.summarize, (one, other))), payload=True)
    except (ArtifactError, ValueError):
        return Difference(path, WHOLE, payload=True)
