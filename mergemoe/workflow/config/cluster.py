"""Section cluster of params.yaml: which experts become one."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from mergemoe.errors import UserError
from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.base import Section


class Cluster(Section):
    """Which experts become one."""

    by: Literal["weights", "router", "outputs", "selection", "saliency", "none"]
    experts: int | float = Field(default=1.0, gt=0, description="int: experts kept; float in (0, 1]: share, rounded up")
    share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="by selection, in place of `experts`: the share of the routed weights kept",
    )
    per: Literal["model", "layer"] = Field(
        default="model", description="of `share`: one number of experts and width for all layers, or each layer its own"
    )
    budget: Literal["uniform", "usage", "error"] = Field(
        default="uniform", description="where the total of `experts` over the layers goes: by usage, by measured error"
    )
    width: float = Field(default=1.0, gt=0, le=1, description="by selection: the share of neurons that it counts with")
    max_size: int | None = Field(default=None, gt=1, description="experts of a group at most")
    layers: str = Field(default="all", description="all, or a range such as 2-3 of the model's layer numbers")
    threads: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _range(self) -> "Cluster":
        if isinstance(self.experts, float) and self.experts > 1:
            raise ValueError(f"experts: {self.experts} is a share above 1; a whole number keeps that many experts")
        given = self.model_fields_set
        if self.share is not None and (self.by != "selection" or given & {"experts", "width", "budget"}):
            raise ValueError(
                "`share` is of `by: selection`, and says what `experts`, `width` and `budget` say elsewhere"
            )
        if self.share is None and "per" in given:
            raise ValueError("`per` belongs to `share`")
        if self.share is None and (self.by == "none") == ("experts" in given):
            raise ValueError("`experts` says how many are kept; leave it out with `by: none`, and nowhere else")
        if self.budget != "uniform" and self.by in {"none", "saliency"}:
            raise ValueError(f"`budget: {self.budget}` is of groups that merge, not of `by: {self.by}`")
        if self.max_size and self.by not in {"weights", "router", "selection"}:
            raise ValueError(f"`max_size` is of groups by weights, router or selection, not by {self.by}")
        if self.by != "selection" and self.width != 1:
            raise ValueError("`width` belongs to `by: selection`, and to the method")
        self.bounds()
        return self

    def spent(self) -> bool:
        """Tell whether layers measure first, and a budget over all of them says what each keeps."""
        return self.share is not None or self.budget != "uniform"

    def within(self, layers: Iterable[int]) -> list[int]:
        """Return the layers of a model that are in the range."""
        first, last = self.bounds()
        return [layer for layer in layers if first <= layer <= last]

    def settings(self) -> dict[str, Any]:
        """Return what a grouping depends on besides its range; the keys of a budget only where there is one."""
        return self.model_dump(exclude={"layers"} | (set() if self.spent() else {"share", "per", "budget"}))

    def bounds(self) -> tuple[int, float]:
        """Return the first and the last layer number of the range."""
        try:
            return layer_sizes.layer_bounds(self.layers)
        except UserError as error:
            raise ValueError(str(error)) from None
