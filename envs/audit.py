"""Look up known vulnerabilities of the locked packages with pip-audit: `make check`.

The advisories are PyPI's. Where it does not answer, nothing is audited, and the last line says so.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ENVS = Path(__file__).parent
LOCKS = ("cpu.txt", "cuda.txt", "dev.txt")


def locked() -> list[str]:
    """Return the lines `package==version` of all lock files."""
    lines = (line for name in LOCKS for line in (ENVS / name).read_text().splitlines())
    return sorted({line for line in lines if "==" in line})


def look_up(pins: Iterable[str]) -> list[dict[str, Any]]:
    """Return what pip-audit knows of each pin: its vulnerabilities, or why it was skipped."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins) + "\n")
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip"]
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True
        )
    if not done.stdout:  # it ends with status 1 and its report if it found something
        reason = done.stderr.strip().splitlines()[-1:]
        return [{"name": pin.partition("==")[0], "skip_reason": str(*reason)} for pin in pins]
    return json.loads(done.stdout)["dependencies"]


def verdict(found: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Return a line for each vulnerable package, and a line of counts."""
    audited = [package for package in found if "vulns" in package]
    vulnerable = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in audited
        for flaw in package["vulns"]
    ]
    counts = f"{len(audited)} of {len(found)} locked packages audited, {len(vulnerable)} known vulnerabilities"
    skipped = [package for package in found if "vulns" not in package]
    return vulnerable, counts + (f"; {skipped[0]['name']}: {skipped[0]['skip_reason']}" if skipped else "")


def main() -> None:
    """Audit one package, and if the advisories are reached the rest; fail if one is vulnerable."""
    first, *rest = sorted(locked(), key=lambda pin: not pin.startswith("torch=="))
    found = look_up([first])
    reached = "vulns" in found[0]
    found += look_up(rest) if reached else [{"name": pin, "skip_reason": ""} for pin in rest]
    vulnerable, counts = verdict(found)
    print("\n".join([*vulnerable, counts]))
    if vulnerable:
        sys.exit("Write a newer version into envs/pins.txt, then `make lock`")


if __name__ == "__main__":
    main()
