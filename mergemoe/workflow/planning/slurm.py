"""Requests of jobs to SLURM: memory, GPU memory and minutes, more on each retry, within the cluster's limits.

Disk is computed too, for `mergemoe plan`; SLURM is not asked for it. The profile's plugin asks for a core per thread.

The limits are in profiles/slurm/partitions.yaml, GPUs and groups of layers in profiles/slurm/config.yaml.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergemoe.errors import UserError
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning.resources import job_resources
from mergemoe.workflow.planning.resources.job_resources import Need

PROFILE = Path("profiles", "slurm")
START = 5.0  # minutes: of Snakemake and imports, on a file system that answers slowly
FILES = 6000.0  # MB a minute that a job reads or writes, assumed of a shared file system
MARGIN = 2.0  # requested time over the computed time at the assumed speed
JOB_MB = 500  # of Snakemake in a job, two processes of 210 MB: tests/e2e/test_slurm.py measures the sum

Limit = Annotated[int, Field(gt=0)]


class Partition(BaseModel):
    """A partition's limits, as Snakemake's SLURM plugin spells them; it has more than are needed here."""

    model_config = ConfigDict(extra="ignore", strict=True)

    max_runtime: Limit | None = None
    max_mem_mb: Limit | None = None
    max_gpu: int = 0


class Speed(BaseModel):
    """Multiplications and additions in 10^9 per second that jobs are assumed to do."""

    model_config = ConfigDict(extra="forbid")

    cpu: float = Field(gt=0)
    gpu: float = Field(gt=0)


class Partitions(BaseModel):
    """The whole of partitions.yaml."""

    model_config = ConfigDict(extra="forbid")

    partitions: dict[str, Partition] = Field(min_length=1)
    gpu_mem_mb: Limit
    gflops: Speed


class Request(NamedTuple):
    """What a job needs: MB of memory and of one GPU, MB of disk (SLURM is not asked for them), and minutes."""

    mem_mb: int
    gpu_mem_mb: int
    disk_mb: int
    runtime: int


@functools.cache
def read_partitions() -> Partitions:
    """Return partitions.yaml.

    Raises:
        UserError: if it is not valid, with every mistake.
    """
    path = PROFILE / "partitions.yaml"
    try:
        return Partitions.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        told = (f"  {'.'.join(map(str, one['loc']))}: {one['msg']} (got {one['input']!r})" for one in error.errors())
        raise UserError("\n".join([f"{path} is not valid:", *told])) from None


@functools.cache
def read_profile() -> Mapping[str, Any]:
    """Return config.yaml."""
    return yaml.safe_load((PROFILE / "config.yaml").read_text(encoding="utf-8"))


def on_gpu(stage: str) -> bool:
    """Tell whether the profile asks for a GPU for a stage."""
    return "gpu" in read_profile().get("set-resources", {}).get(stage, {})


def layers_per_job(stage: str) -> int:
    """Return how many layers of a stage share one SLURM job; they take turns in it, so their times add up."""
    group = read_profile().get("groups", {}).get(stage)
    return read_profile().get("group-components", {}).get(group, 1)


def uncapped_request(params: Params, stage: str, names: Mapping[str, Any]) -> Request:
    """Return the resources that one job needs, Snakemake in it included, without the limits."""
    need, gpu = job_resources.job_need(params, stage, names), on_gpu(stage)
    return Request(need.memory + JOB_MB, need.gpu if gpu else 0, need.disk, math.ceil(job_minutes(need, gpu)))


def job_request(params: Params, stage: str, names: Mapping[str, Any], attempt: int = 1) -> Request:
    """Return the request of one job: memory and time times the attempt, within the limits.

    Layers that share a SLURM job share its time limit.
    """
    want, limits = uncapped_request(params, stage, names), read_partitions()
    every = list(limits.partitions.values())
    of_kind = [one for one in every if bool(one.max_gpu) == on_gpu(stage)] or every
    most = {key: max(getattr(one, key) or math.inf for one in of_kind) for key in ("max_mem_mb", "max_runtime")}
    return Request(
        mem_mb=int(min(attempt * want.mem_mb, most["max_mem_mb"])),
        gpu_mem_mb=min(attempt * want.gpu_mem_mb, limits.gpu_mem_mb),
        disk_mb=want.disk_mb,
        runtime=int(min(attempt * want.runtime, most["max_runtime"] / layers_per_job(stage))),
    )


def job_minutes(need: Need, gpu: bool) -> float:
    """Return the minutes that a job needs at the speed that is assumed."""
    speed = read_partitions().gflops.gpu if gpu else read_partitions().gflops.cpu
    return START + (need.read + need.disk) / FILES + MARGIN * need.flops / (60e9 * speed)
