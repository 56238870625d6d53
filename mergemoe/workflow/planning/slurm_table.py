"""Table of `mergemoe plan` for a cluster: the requests of all jobs, before anything is submitted."""

from collections.abc import Sequence
from typing import NamedTuple

from mergemoe.text_table import aligned_table
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import jobs, slurm
from mergemoe.workflow.planning.slurm import Request

HEAD: tuple[str, ...] = (
    "stage",
    "jobs",
    "layers a job",
    "on",
    "memory",
    "GPU memory",
    "disk",
    "minutes",
    "hours in all",
)


class Job(NamedTuple):
    """One job, the resources that it needs, and its first request."""

    stage: str
    names: dict[str, str]
    wanted: Request
    asked: Request


def slurm_text(params: Params) -> str:
    """Return the table, and the jobs that would not fit into the limits of partitions.yaml."""
    limits = slurm.read_partitions()
    every = [
        Job(stage, names, slurm.uncapped_request(params, stage, names), slurm.job_request(params, stage, names))
        for stage, names in jobs.every_job(params)
    ]
    rows, hours = [HEAD], {True: 0.0, False: 0.0}
    for stage in dict.fromkeys(job.stage for job in every):
        of_stage = [job.asked for job in every if job.stage == stage]
        most = Request(*map(max, zip(*of_stage, strict=True)))
        gpu, total = slurm.on_gpu(stage), sum(job.runtime for job in of_stage) / 60
        hours[gpu] += total
        gpu_memory = f"{most.gpu_mem_mb:,} MB" if gpu else ""
        row = (
            stage,
            f"{len(of_stage)}",
            f"{slurm.layers_per_job(stage)}",
            "GPU" if gpu else "CPU",
            f"{most.mem_mb:,} MB",
        )
        rows.append((*row, gpu_memory, f"{most.disk_mb:,} MB", f"{most.runtime:,}", f"{total:,.1f}"))
    lines = [
        f"on a cluster ({slurm.PROFILE}): what the largest job of each stage asks for (estimates)",
        aligned_table(rows, "<>><>"),
        f"asked for in all: {hours[True]:,.1f} GPU hours, {hours[False]:,.1f} CPU hours",
        f"(minutes: {slurm.START:g} to start, 1 for each {slurm.FILES:,.0f} MB of files, {slurm.MARGIN:g} times what "
        f"computing takes at {limits.gflops.gpu:g} GFLOP/s on a GPU, {limits.gflops.cpu:g} on a CPU: partitions.yaml)",
    ]
    return "\n".join([*lines, *_too_large(every)])


def _too_large(every: Sequence[Job]) -> list[str]:
    """Return lines that name the jobs over the limits; layers of one stage and choice share a line."""
    found: dict[tuple[str, ...], list[int]] = {}
    for job in every:
        said = {
            "mem_mb": f"{job.wanted.mem_mb:,} MB of memory",
            "gpu_mem_mb": f"{job.wanted.gpu_mem_mb:,} MB of a GPU",
            "runtime": _long(job.wanted.runtime, slurm.layers_per_job(job.stage)),
        }
        lacking = [text for key, text in said.items() if getattr(job.wanted, key) > getattr(job.asked, key)]
        if lacking:
            choice = "/".join(value for name, value in job.names.items() if name != "layer")
            layers = found.setdefault((job.stage, choice, ", ".join(lacking)), [])
            layers += [int(job.names["layer"])] if "layer" in job.names else []
    if not found:
        return ["every job fits into the limits of partitions.yaml"]
    lines = [
        "would not fit into the limits of partitions.yaml (is there a larger partition; or a GPU, for a CPU's stage?):"
    ]
    for (stage, choice, what), layers in found.items():
        lines.append(f"  {stage} {choice}{f', layers {_ranges(layers)}' if layers else ''}: needs {what}")
    return lines


def _long(minutes: int, layers: int) -> str:
    shared = f" (and {layers} layers share a job: lower `group-components` in the profile)" if layers > 1 else ""
    return f"{minutes:,} minutes{shared}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as in 0-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
