"""Memory and time that a rule's jobs ask SLURM for, and their disk, only planned. On one machine nobody asks."""

import functools
from collections.abc import Callable
from typing import Any

from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning import slurm
from mergemoe.workflow.planning.slurm import Request


def check_profile() -> None:
    """Check the profile's partitions.yaml, if there is one.

    Raises:
        UserError: if it is not valid.
    """
    if slurm.PROFILE.is_dir():
        slurm.read_partitions()


def resource_functions(params: Params, stage: str) -> dict[str, Callable[[Any, int], int]]:
    """Return a function of wildcards and attempt for each resource of a rule; none if there is no profile."""
    if not slurm.PROFILE.is_dir():
        return {}

    @functools.cache
    def of_job(names: tuple[tuple[str, str], ...], attempt: int) -> Request:
        return slurm.job_request(params, stage, dict(names), attempt)

    def resource(key: str) -> Callable[[Any, int], int]:
        return lambda wildcards, attempt: getattr(of_job(tuple(wildcards.items()), attempt), key)

    return {key: resource(key) for key in Request._fields}
