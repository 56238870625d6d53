"""Whether this job's Snakemake run is still going: a job whose run has ended must not write."""

import os
from pathlib import Path

RUN = "MERGEMOE_CLAIMS"  # in the environment of a run's jobs: the file of its claims, which goes when the run ends


OVER = "the run of Snakemake that this job belongs to is over, or was killed and another has begun"


LEFT = set[Path]()  # what this process would have written, and found written


def run_is_over() -> bool:
    """Tell whether this process is a job whose run has ended, or was killed and followed by another."""
    claims = os.environ.get(RUN)
    return claims is not None and not Path(claims).exists()
