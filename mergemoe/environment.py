"""What a job runs in and takes: versions, platform, threads, node, memory, seconds. A log ends with it, no artifact."""

import json
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "h5py", "lm-eval", "snakemake", "dvc")
MARK = "ran in: "
_START = time.monotonic()  # `stages` imports this module first, before torch


def describe_environment() -> dict[str, Any]:
    """Return packages, Python and platform of this process."""
    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "processor": _processor(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def environment_line() -> str:
    """Return the line of a log that says what a job ran in, with what threads and GPU, where, and what it took."""
    ran: dict[str, Any] = {**describe_environment(), "mkl_cbwr": os.environ.get("MKL_CBWR")}
    if torch := sys.modules.get("torch"):  # a stage without it computes nothing that hangs on them
        ran |= {"threads": torch.get_num_threads()}
        ran |= {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    ran |= {"node": os.environ.get("SLURMD_NODENAME") or platform.node()}
    ran |= {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "peak_mb": _peak()}
    seconds = time.monotonic() - _START  # imports included
    return MARK + json.dumps({**ran, "seconds": round(seconds, 1)}, sort_keys=True)


def _peak() -> int | None:
    """Return the most memory, in MB, that this process had resident so far, pages of mapped files included; on Linux.

    The `ru_maxrss` of getrusage would do but for what it inherits of the process that started this one.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return round(int(found[1]) * 1024 / 1e6) if found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return what Linux says of the processor, which the last bits of a number hang on; elsewhere Python's word."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if len(facts) < 3:
        return platform.processor()
    return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"
