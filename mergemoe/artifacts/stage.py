"""One row of the table of stages (stages.py)."""

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal


@dataclass(frozen=True)
class Holds:
    """What the process of a job holds in memory at its worst moment."""

    base: int  # MB of imports and libraries' own buffers, as measured on the demo (docs/cluster.md)


@dataclass(frozen=True)
class Stage:
    """One stage of the workflow.

    name: of its rule and of its module in stages/.
    output: pattern of the path that its provenance names, a file or a folder.
    holds: memory of one job.
    record: pattern of the JSON that shows a finished job, if that is not the output.
    dvc: the DVC stage that it belongs to; None if nothing that it writes is recorded.
    reads: stages whose artifacts it reads.
    sections: sections of params.yaml that its parameters come from. Of a section that holds named choices a job gets
        the one that its wildcard names.
    keys: keys of that section that it gets; all if empty.
    parameters: method of stages.support.graph.Graph that returns its parameters, if they are not one section.
    threads: section whose key `threads` it takes.
    checkpoint: how much of the model's weights a job reads.
    device: `gpu` asks for one in profiles/slurm, `any` can use one that it finds, `cpu` uses none.
    optional: whether some runs do without it.
    method: whether it loads the module of the run's method.
    """

    name: str
    output: str
    holds: Holds
    record: str | None = None
    dvc: str | None = None
    reads: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    parameters: str | None = None
    threads: str | None = None
    checkpoint: Literal["none", "layer", "whole"] = "none"
    device: Literal["cpu", "any", "gpu"] = "cpu"
    optional: bool = False
    method: bool = False

    @property
    def wildcards(self) -> tuple[str, ...]:
        """Return the names in the output's pattern, which tell its jobs apart."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.output) if name)

    @property
    def folder(self) -> str:
        """Return the folder below results/ that its outputs lie in."""
        return "/".join(self.output.split("/")[:2])

    @property
    def log(self) -> str:
        """Return the pattern of its jobs' logs."""
        parts = (f"layer_{{{name}}}" if name == "layer" else f"{{{name}}}" for name in self.wildcards)
        return "/".join(("logs", self.name, *parts)) + ".log"

    @property
    def pair(self) -> bool:
        """Tell whether a job writes tensors, and JSON of the same name beside them."""
        return self.record is not None and self.output.endswith(".safetensors")

    @property
    def finished(self) -> str:
        """Return the pattern of the path that is there when a job has finished."""
        return self.record or self.output

    def files(self, output: str) -> list[str]:
        """Return the paths that a job with this output writes: of a pair both, else the output."""
        return [output, str(Path(output).with_suffix(".json"))] if self.pair else [output]
