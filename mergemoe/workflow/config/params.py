"""params.yaml: every number that a result depends on, checked before the first job.

There is one section per stage. `model`, `calibrate`, `cluster` and `solve` hold named choices, and a run is one of
each; `refine` and `quantize` hold named choices, too, and a run may have one of each. Only the Snakefile and the
command line import this module. A stage gets its own choice as JSON, complete and checked, so that a new method or key
changes no existing result.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mergemoe.artifacts.run import Run
from mergemoe.errors import UserError, one_line
from mergemoe.methods import catalogue
from mergemoe.workflow.config.base import BatchTokens, Section, Text, Threads
from mergemoe.workflow.config.cluster import Cluster
from mergemoe.workflow.config.evaluate import Evaluate
from mergemoe.workflow.config.model import Model
from mergemoe.workflow.config.names import fault_of_name
from mergemoe.workflow.config.quantize import Quantize
from mergemoe.workflow.config.refine import Refine
from mergemoe.workflow.config.solve import Method


class Calibrate(Text):
    """The sequences that a compression is fitted on."""

    holdout: float = Field(
        default=0.125, ge=0, lt=1, description="share of the sequences that is held out from every fit"
    )


class Capture(Section):
    """The forward pass of the model over the calibration sequences."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch_tokens: BatchTokens = 16384
    threads: Threads = 1


class Profile(Section):
    """Usage, saliency and router geometry."""

    threads: Threads = 1


class Params(Section):
    """All of params.yaml."""

    model: dict[str, Model]
    calibrate: dict[str, Calibrate]
    capture: Capture = Capture()
    profile: Profile = Profile()
    cluster: dict[str, Cluster]
    solve: dict[str, Method]
    refine: dict[str, Refine] = {}
    quantize: dict[str, Quantize] = {}
    evaluate: Evaluate
    runs: Literal["all"] | list[Run]

    @model_validator(mode="after")
    def _names(self) -> "Params":
        kinds = {"model": self.model, "calibrate": self.calibrate, "cluster": self.cluster, "solve": self.solve}
        for kind, named in kinds.items():
            if not named:
                raise ValueError(f"{kind}: it is empty. Give at least one choice, by any name")
        kinds |= {"refine": self.refine, "quantize": self.quantize}
        for kind, named in {**kinds, "evaluate.tasks": self.evaluate.tasks}.items():
            for name in named:
                if why := fault_of_name(kind, name):
                    raise ValueError(f"{kind}: {why}")
        if "fidelity" in self.evaluate.tasks:
            raise ValueError(
                "evaluate.tasks: `fidelity` is always measured, and is not a task of lm-eval. Leave it out"
            )
        if "generation" in self.evaluate.tasks:
            raise ValueError("evaluate.tasks: `generation` is not a task of lm-eval. Set `evaluate.generation` instead")
        for run in self.runs if self.runs != "all" else []:
            for kind, name in run.choices.items():
                if name not in kinds[kind]:
                    there = ", ".join(kinds[kind]) or "none"
                    raise ValueError(f"runs: {run.listed} asks for {kind} {name!r}; there are: {there}")
            if why := self.misfit(run):
                raise ValueError(f"runs: {run.listed}: {why}")
        names = [run.name for run in self.all_runs()]
        if len(names) != len(set(names)) or not names:
            raise ValueError(
                f"runs: the list is empty, or has a run twice{''.join(map('; '.__add__, self.left_out()))}"
            )
        return self

    def misfit(self, run: Run) -> str | None:
        """Return why the choices of a run do not fit one another; None if they do."""
        grouping, method = self.cluster[run.cluster], self.solve[run.solve]
        width, routing = getattr(method, "width", 1.0), self.routing(run.solve)
        multiple = getattr(method, "width_multiple", 1)
        counted = grouping.width if grouping.share is None else "auto"
        if why := catalogue.misfit(grouping.by, counted, method.method, width, routing):
            return why
        if grouping.by == "selection" and width != "auto" and width < 1 and multiple != grouping.width_multiple:
            return (
                f"the groups are made for multiples of {grouping.width_multiple} neurons, the method keeps {multiple}"
            )
        why = self.refine[run.refine].misfit(routing) if run.refine else None
        return f"refine.{run.refine}: {why}" if why else None

    def kept_width(self, cluster: str, solve: str | None, width: int) -> int:
        """Return I', the neurons that a grouping and a solve keep of I; the groups' alone without a solve.

        It is I if a budget decides later, which leaves the most.
        """
        options = self.solve[solve].model_dump() if solve else {"width": "auto"}
        return catalogue.kept_width(
            self.cluster[cluster].model_dump() if options.get("width") == "auto" else options, width
        )

    def routing(self, solve: str) -> str:
        """Return the routing of a choice of `solve`: preserved, pruned or folded."""
        return catalogue.routing(self.solve[solve].method, self.solve[solve].model_dump())

    def descents(self, run: Run) -> list[str]:
        """Return the choices of a run that are a descent, each as `section.choice`."""
        rounded = run.quantize and self.quantize[run.quantize].by == "descent"
        chosen = {"refine": run.refine, "quantize": run.quantize if rounded else None}
        return [f"{section}.{choice}" for section, choice in chosen.items() if choice]

    def all_runs(self) -> list[Run]:
        """Return the runs, in order; `runs: all` is every combination that fits, without and with each addition."""
        return [run for run in self._named() if not self.misfit(run)]

    def run_named(self, model: str, subject: str) -> Run:
        """Return the run of a model that has this name.

        Raises:
            UserError: if there is none.
        """
        for run in self.all_runs():
            if (run.model, run.subject) == (model, subject):
                return run
        raise UserError(f"{model}/{subject} is not a run. `runs` in params.yaml has the names of all")

    def left_out(self) -> list[str]:
        """Return the combinations that `runs: all` leaves out, one line per pair of grouping and solution."""
        pairs: dict[str, str] = {}
        for run in self._named():
            bare = run._replace(refine=None, quantize=None)
            named = bare if self.misfit(bare) else run
            if why := self.misfit(named):
                pairs[f"{named.cluster}/{named.solution}"] = why
        return [f"{pair} is left out: {why}" for pair, why in pairs.items()]

    def _named(self) -> list[Run]:
        if self.runs == "all":
            added = ((None, *self.refine), (None, *self.quantize))
            each = (self.model, self.calibrate, self.cluster, self.solve, *added)
            return [Run(*run) for run in itertools.product(*each)]
        return self.runs


def read_params(config: Mapping[str, Any], source: str | Path = "params.yaml") -> Params:
    """Validate the content of params.yaml.

    Raises:
        UserError: one line per mistake, named by its path in the file.
    """
    try:
        return Params.model_validate(config)
    except ValidationError as error:
        raise UserError("\n".join([f"{source} is not valid:", *dict.fromkeys(map(_explain, error.errors()))])) from None


def _is_short(value: Any) -> bool:
    return isinstance(value, str | float) or isinstance(value, int) and value.bit_length() <= 64


def _explain(mistake: Any) -> str:
    of_a_union = ("int", "float", "literal[", "list[")  # pydantic's path includes the alternative that it tried
    where = [str(part) for part in mistake["loc"] if not str(part).startswith(of_a_union)]
    if where[:1] in (["solve"], ["quantize"]):
        del where[2:3]  # and the method
    if where[:1] == ["runs"]:  # the name's place in a list
        where[2:3] = [Run._fields[int(part)] if part.isdigit() else part for part in where[2:3]]
    path = ".".join(where)
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "unknown key"
    elif where[:1] == ["runs"] and mistake["type"] in ("too_long", "named_tuple_type"):
        message = f"a run is a list, or a mapping, of at most {len(Run._fields)} names: {', '.join(Run._fields)}"
    elif isinstance(mistake["input"], str) and re.fullmatch(r"\d+e-?\d+", mistake["input"]):
        message += f". YAML reads {mistake['input']} as text: write {mistake['input'].replace('e', '.0e')}"
    elif _is_short(mistake["input"]):
        message += f" (got {one_line(repr(mistake['input']))})"
    return f"  {one_line(path, 200) or 'top level'}: {one_line(message)}"
