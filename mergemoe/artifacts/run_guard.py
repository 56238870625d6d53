"""Tell a job that its Snakemake run has ended. Such a job must not write (see job_cache.py)."""

import os
from pathlib import Path

RUN = "MERGEMOE_CLAIMS"  # environment variable: the file of a run's expected provenance, deleted when the run ends
OVER = "this job belongs to a Snakemake run that has ended, or was killed and replaced by another"
RESTORE = "MERGEMOE_RESTORE"  # environment variable of what `mergemoe restore` starts: its process
RESTORING = "scratch/restoring"  # a file with the process that puts another revision in place, while it does
UNCHANGED = set[Path]()  # outputs that this process did not write because the same content was there


def run_is_over() -> bool:
    """Tell whether this process is a job whose run has ended, or was killed and replaced by another."""
    claims = os.environ.get(RUN)
    return claims is not None and not Path(claims).exists()


def being_restored() -> bool:
    """Tell whether another process, of which this is no part, is putting a recorded revision in place."""
    mark = Path(RESTORING)
    process = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    return process.isdecimal() and process != os.environ.get(RESTORE) and Path("/proc", process).exists()
