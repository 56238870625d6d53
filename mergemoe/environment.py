"""Describe a job's environment, time and memory, for the last line of its log. No artifact holds them."""

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
    """Return the package versions, Python and platform of this process."""
    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "processor": _processor(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def environment_line() -> str:
    """Return the last line of a log: packages, platform, threads, GPU, node, peak memory and seconds of the job."""
    ran: dict[str, Any] = {**describe_environment(), "mkl_cbwr": os.environ.get("MKL_CBWR")}
    if torch := sys.modules.get("torch"):  # without torch, nothing that a stage computes depends on threads or the GPU
        ran |= {"aten": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        ran |= {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    ran |= {"node": os.environ.get("SLURMD_NODENAME") or platform.node()}
    ran |= {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "peak_mb": _peak()}
    seconds = time.monotonic() - _START  # imports included
    return MARK + json.dumps({**ran, "seconds": round(seconds, 1)}, sort_keys=True)


def _peak() -> int | None:
    """Return this process's peak resident memory in MB, pages of mapped files included; None if not on Linux.

    getrusage's `ru_maxrss` will not do, because it includes the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    found = (
        re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        if status.is_file()
        else None
    )
    return round(int(found[1]) * 1024 / 1e6) if found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def has_avx2() -> bool:
    """Tell whether this is an x86-64 processor with AVX2, on Linux."""
    return re.search(r"^flags\s*:.* avx2\b", _cpu_info(), re.MULTILINE) is not None


def _cpu_info() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.is_file() else ""


def _processor() -> str:
    """Return the processor's name, family and model on Linux, else Python's name. Last bits of results depend on it."""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", _cpu_info(), re.MULTILINE))
    if len(facts) < 3:
        return platform.processor()
    return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"
