"""The parameters of every method: what a named choice of section `solve` may say.

A method with parameters has a class here, discriminated by its name; one without is `Plain`. What a class says is
checked with all of params.yaml (workflow/config/params.py).
"""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from mergemoe.methods import catalogue
from mergemoe.workflow.config.base import Section


class Solve(Section):
    """What every method has."""

    threads: int = Field(default=1, gt=0, description="CPU threads; the last bits depend on it")


class MergeMoE(Solve):
    """The paper's method: usage-weighted features, least squares for the down-projection."""

    method: Literal["mergemoe"]
    ridge: float = Field(
        default=0.0, ge=0, description="damping, a share of the mean squared feature; 0 is the paper's"
    )


class REAP(Solve):
    """REAP: the most salient experts stay, with their rows of the router."""

    method: Literal["reap"]
    routing: Literal["pruned"] = "pruned"


Share = Annotated[
    float, Field(gt=0, le=1, description="share of the neurons that is kept, rounded up: of 128, to a multiple of 8")
]
Ridge = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=0)],
    Field(description="pull toward the prior, a share of the typical neuron's energy; auto: by held-out error"),
]

Routing = Annotated[
    Literal["preserved", "pruned", "folded"],
    Field(description="pruned, folded: one row of the router per group, its others deleted or joined"),
]
Memory = Annotated[float, Field(gt=0, description="GB for the joint solve's sums; beyond it, it is iterative")]


class Triple(Solve):
    """What a merged expert computes before its down-projection, which the method finds."""

    features: Literal["plain", "usage", "aligned", "zipped", "selected"] = "usage"
    width: Share = 1.0

    @model_validator(mode="after")
    def _picked(self) -> "Triple":
        if self.width < 1 and self.features != "selected":
            raise ValueError(f"`width` below 1 needs `features: selected`: {self.features} are averages")
        return self


class Unsolved(Triple):
    """The down-projection that comes with the features."""

    method: Literal["unsolved"]
    routing: Routing = "preserved"


class Routed(Triple):
    """Least squares on routed outputs, group by group."""

    method: Literal["routed"]
    ridge: Ridge = "auto"


class Joint(Triple):
    """Least squares on the routed output, of all groups at once."""

    method: Literal["joint"]
    routing: Routing = "preserved"
    ridge: Ridge = "auto"
    memory: Memory = 8.0


class Select(Solve):
    """The best neurons of each group, solved jointly."""

    method: Literal["select"]
    width: Literal["auto"] | Share = Field(default=1.0, description="auto: the width that its groups were counted with")
    ridge: Ridge = "auto"
    memory: Memory = 8.0


class Slim(Solve):
    """The best neurons of each expert, solved jointly; no merging."""

    method: Literal["slim"]
    width: Share
    ridge: Ridge = "auto"
    memory: Memory = 8.0


WithParameters = MergeMoE | REAP | Unsolved | Routed | Joint | Select | Slim
_NAMED = {get_args(section.model_fields["method"].annotation)[0] for section in get_args(WithParameters)}


class Plain(Solve):
    """A method without parameters of its own: methods/catalogue.py names it."""

    method: Literal[*(name for name in catalogue.GROUPINGS if name not in _NAMED)]  # pyright: ignore[reportInvalidTypeForm]


Method = Annotated[Plain | WithParameters, Field(discriminator="method")]
