"""What profiles/slurm says of a cluster, and what jobs ask it for: their needs, more on each retry, within limits."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergemoe.errors import UserError
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import job_resources
from mergemoe.workflow.planning.job_resources import Need

PROFILE = Path("profiles", "slurm")
START = 5.0  # minutes: of Snakemake and imports, on a file system that answers slowly
FILES = 6000.0  # MB a minute that a job reads or writes, assumed of a shared file system
MARGIN = 2.0  # of time that is asked for, over what is computed at the assumed speed
JOB_MB = 500  # of Snakemake in a job, two processes of 210 MB: tests/e2e/test_slurm.py adds up what jobs hold

Limit = Annotated[int, Field(gt=0)]


class Partition(BaseModel):
    """A partition's limits, as Snakemake's SLURM plugin spells them; it has more of them than are needed here."""

    model_config = ConfigDict(extra="ignore", strict=True)

    max_runtime: Limit | None = None
    max_mem_mb: Limit | None = None
    max_gpu: int = 0


class Speed(BaseModel):
    """Multiplications and additions in 10^9 per second that jobs are assumed to do."""

    model_config = ConfigDict(extra="forbid")

    cpu: float = Field(gt=0)
    gpu: float = Field(gt=0)


class Cluster(BaseModel):
    """All of partitions.yaml."""

    model_config = ConfigDict(extra="forbid")

    partitions: dict[str, Partition] = Field(min_length=1)
    gpu_mem_mb: Limit
    gflops: Speed


class Asked(NamedTuple):
    """What a job asks for: MB of memory, of one GPU and of disk, and minutes."""

    mem_mb: int
    gpu_mem_mb: int
    disk_mb: int
    runtime: int


@functools.cache
def cluster() -> Cluster:
    """Return what partitions.yaml says.

    Raises:
        UserError: where it is not valid, with every mistake.
    """
    path = PROFILE / "partitions.yaml"
    try:
        return Cluster.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        told = (f"  {'.'.join(map(str, one['loc']))}: {one['msg']} (got {one['input']!r})" for one in error.errors())
        raise UserError("\n".join([f"{path} is not valid:", *told])) from None


@functools.cache
def profile() -> Mapping[str, Any]:
    """Return what config.yaml says."""
    return yaml.safe_load((PROFILE / "config.yaml").read_text())


def on_gpu(stage: str) -> bool:
    """Tell whether the profile asks a GPU for a stage."""
    return "gpu" in profile().get("set-resources", {}).get(stage, {})


def together(stage: str) -> int:
    """Return how many layers of a stage share one job of SLURM, where they take turns and their times add up."""
    group = profile().get("groups", {}).get(stage)
    return profile().get("group-components", {}).get(group, 1)


def wanted(params: Params, stage: str, names: Mapping[str, Any]) -> Asked:
    """Return what one job needs, Snakemake in it included, whatever it may ask for."""
    need, gpu = job_resources.job_need(params, stage, names), on_gpu(stage)
    return Asked(need.memory + JOB_MB, need.gpu if gpu else 0, need.disk, math.ceil(minutes(need, gpu)))


def asked(params: Params, stage: str, names: Mapping[str, Any], attempt: int = 1) -> Asked:
    """Return what one job asks for: with each attempt once more of memory and time, within the limits.

    Layers that share a job of SLURM share the time that it may ask for.
    """
    want, limits = wanted(params, stage, names), cluster()
    every = list(limits.partitions.values())
    of_kind = [one for one in every if bool(one.max_gpu) == on_gpu(stage)] or every
    most = {key: max(getattr(one, key) or math.inf for one in of_kind) for key in ("max_mem_mb", "max_runtime")}
    return Asked(
        mem_mb=int(min(attempt * want.mem_mb, most["max_mem_mb"])),
        gpu_mem_mb=min(attempt * want.gpu_mem_mb, limits.gpu_mem_mb),
        disk_mb=want.disk_mb,
        runtime=int(min(attempt * want.runtime, most["max_runtime"] / together(stage))),
    )


def minutes(need: Need, gpu: bool) -> float:
    """Return the minutes that a job needs at the speed that is assumed."""
    speed = cluster().gflops.gpu if gpu else cluster().gflops.cpu
    return START + (need.read + need.disk) / FILES + MARGIN * need.flops / (60e9 * speed)
