"""envs/recorded.json: environment, time and memory of the jobs of a recorded run. It is in git, not in an artifact.

{"stages": {stage: {"jobs": n, "seconds": s, "peak_mb": most, "ran_in": [versions, platform, threads]}}}
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergemoe import environment
from mergemoe.artifacts import atomic, paths
from mergemoe.artifacts.stages import STAGES
from mergemoe.artifacts.verify import Claims
from mergemoe.workflow.ledger import kept_files

FILE = Path("envs", "recorded.json")
COMPARED = ("processor", "python", "system", "gpu", "threads", "mkl_cbwr", "aten")


def read_recorded(root: Path) -> dict[str, Any]:
    """Return the record of each stage; nothing if there is no file."""
    if not (root / FILE).exists():
        return {}
    otherwise = "; or delete it, and `mergemoe record` writes it from the logs"
    return kept_files.read_kept(root, str(FILE), kept_files.Recorded, otherwise)["stages"]


def renew_recorded(root: Path, claims: Claims) -> None:
    """Write the file from the logs of the claimed artifacts' jobs.

    A stage without logs, because its artifacts were restored, keeps its record; one that no run needs loses it.
    """
    needed = {claim["stage"] for claim in claims.values()}
    kept = {stage: record for stage, record in read_recorded(root).items() if stage in needed}
    path = root / FILE
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"stages": {**kept, **gather_logs(root, claims)}}, sort_keys=True, indent=1)
    with atomic.atomic(path) as file:
        file.write_text(f"{text}\n", encoding="utf-8")


def gather_logs(root: Path, claims: Claims) -> dict[str, Any]:
    """Return {stage: jobs, seconds, highest peak of memory, environments} from the logs of the claimed artifacts' jobs.

    Raises:
        UserError: if the line of a log that says so was cut or edited.
    """
    stages: dict[str, Any] = {}
    for log, stage in sorted((_log(output, claim["stage"]), claim["stage"]) for output, claim in claims.items()):
        path = root / log
        text = path.read_text(errors="replace", encoding="utf-8") if path.is_file() else ""
        lines = re.findall(rf"^{environment.MARK}(.*)$", text, re.MULTILINE)
        if not lines:
            continue
        fix = f"Delete it, and its job is left out of {FILE}; or delete what the job made, and run `snakemake` again"
        ran = kept_files.parse_kept(lines[-1], str(path), kept_files.RanIn, fix)
        entry = stages.setdefault(stage, {"jobs": 0, "seconds": 0.0, "peak_mb": 0, "ran_in": []})
        entry["jobs"] += 1
        entry["seconds"] = round(entry["seconds"] + ran.pop("seconds"), 1)
        entry["peak_mb"] = max(entry["peak_mb"], ran.pop("peak_mb") or 0)
        for of_one_job in ("node", "devices"):
            del ran[of_one_job]
        if ran not in entry["ran_in"]:
            entry["ran_in"].append(ran)
    return stages


def _log(output: str, stage: str) -> str:
    """Return the log of the job that makes an output."""
    row = STAGES[stage]
    pattern = row.output.format(**{name: f"(?P<{name}>{paths.PATTERNS[name]})" for name in row.wildcards})
    found = re.fullmatch(pattern, output)
    assert found, f"{output} is no output of {stage}"
    return row.log.format(**found.groupdict())


def environments(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where the jobs of stages ran; if no log says so, where this process runs."""
    return [ran for stage in stages.values() for ran in stage["ran_in"]] or [environment.describe_environment()]


def environment_differences(root: Path, here: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the differences between the recorded environments and those in which results came out `here`, as text."""
    recorded = environments(read_recorded(root)) if (root / FILE).exists() else []
    then, now = ([_flat(place) for place in places] for places in (recorded, here))
    found: list[str] = []
    for key in dict.fromkeys(key for place in now for key in place):
        one, other = (dict.fromkeys(str(place[key]) for place in places if key in place) for places in (then, now))
        if one and one.keys() != other.keys():
            found.append(f"{key}: {' and '.join(one)} when recorded, {' and '.join(other)} here")
    return found


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in COMPARED if key in facts} | facts["packages"]
