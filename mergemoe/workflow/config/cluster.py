"""Section cluster of params.yaml: how experts are grouped, and how many groups each layer keeps."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from mergemoe.errors import UserError
from mergemoe.methods.catalogue import BOUNDED
from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.base import Section, Threads


class Cluster(Section):
    """One grouping, and its size."""

    by: Literal["weights", "router", "outputs", "selection", "saliency", "none"]
    experts: int | float = Field(default=1.0, gt=0, description="int: experts kept; float in (0, 1]: share, rounded up")
    share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="by selection: share of the routed weights kept; replaces `experts`, `width` and `budget`",
    )
    per: Literal["model", "layer"] = Field(
        default="model",
        description="with `share`: one number of experts and one width for all layers, or for each layer",
    )
    budget: Literal["uniform", "usage", "error"] = Field(
        default="uniform",
        description="how the total of `experts` is divided among layers: equally, by usage, or by measured error",
    )
    width: float = Field(
        default=1.0, gt=0, le=1, description="by selection: the share of neurons that each group keeps"
    )
    width_multiple: int = Field(
        default=layer_sizes.WIDTH_MULTIPLE,
        ge=1,
        description="by selection: kept neurons are a multiple of it, as far as an expert's are",
    )
    max_size: int | None = Field(default=None, gt=1, description="most experts of a group")
    search: Literal["full", "quick"] = Field(
        default="full",
        description="by selection: costs of unions from all neurons, or from a quarter of neurons and outputs",
    )
    layers: str = Field(default="all", description="all, or a range such as 2-3 of the model's layer numbers")
    threads: Threads = 1

    @model_validator(mode="after")
    def _range(self) -> "Cluster":
        if isinstance(self.experts, float) and self.experts > 1:
            raise ValueError(f"experts: {self.experts} is a share above 1. Give a share in (0, 1], or a whole number")
        given = self.model_fields_set
        if self.share is not None and (self.by != "selection" or given & {"experts", "width", "budget"}):
            raise ValueError("`share` replaces `experts`, `width` and `budget`, and needs `by: selection`")
        if self.share is None and "per" in given:
            raise ValueError("`per` needs `share`, which is not given")
        if self.share is None and (self.by == "none") == ("experts" in given):
            raise ValueError(
                "`experts` is the number or share of experts kept. `by: none` keeps all: leave it out there only"
            )
        if self.budget != "uniform" and self.by in {"none", "saliency"}:
            raise ValueError(f"`budget: {self.budget}` needs groups that are merged; this grouping is `by: {self.by}`")
        if self.max_size and self.by not in BOUNDED:
            raise ValueError(f"`max_size` applies to `by: {', '.join(BOUNDED)}`; this grouping is `by: {self.by}`")
        if self.by != "selection" and (wide := sorted(given & {"width", "width_multiple"})):
            raise ValueError(
                f"`{wide[0]}` of a grouping needs `by: selection`; `by: {self.by}` takes it from the method only"
            )
        if self.by != "selection" and self.search != "full":
            raise ValueError(f"`search: {self.search}` needs `by: selection`; `by: {self.by}` tries no unions")
        self.bounds()
        return self

    def spent(self) -> bool:
        """Tell whether a budget over all layers decides what each keeps, after their errors are measured."""
        return self.share is not None or self.budget != "uniform"

    def within(self, layers: Iterable[int]) -> list[int]:
        """Return the layers of a model that are in the range."""
        first, last = self.bounds()
        return [layer for layer in layers if first <= layer <= last]

    def settings(self) -> dict[str, Any]:
        """Return all keys but `layers`; the keys of a budget only if there is one, `search` only if it is quick."""
        budget = set() if self.spent() else {"share", "per", "budget"}
        return self.model_dump(exclude={"layers"} | budget | (set() if self.search == "quick" else {"search"}))

    def bounds(self) -> tuple[int, float]:
        """Return the first and the last layer number of the range."""
        try:
            return layer_sizes.layer_bounds(self.layers)
        except UserError as error:
            raise ValueError(str(error)) from None
