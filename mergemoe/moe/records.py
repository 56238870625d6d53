"""Types of the JSON artifacts of one layer: profile, curve, grouping, record of a solve.

Where the class of an artifact is named Layer..., its base is the part that the library computes; the stage adds the
number of the layer, and what its parameters say.
"""

from typing import TypedDict


class Profile(TypedDict):
    """Statistics of the experts over the fitted tokens (calibration/profile.py); lists are [N] or [N, N]."""

    experts: int
    top_k: int
    tokens: int
    usage: list[int]
    mean_weight: list[float]
    saliency: list[float]
    router_similarity: list[list[float]]


class LayerProfile(Profile):
    """The artifact of stage profile."""

    layer: int


class LayerSize(TypedDict):
    """M `experts` of I' = `width` neurons, which a layer keeps."""

    experts: int
    width: int


class MeasuredSize(LayerSize):
    """The same, with the layer's error on held-out tokens at this size."""

    error: float


class LayerCurve(TypedDict):
    """The artifact of stage curve."""

    layer: int
    sizes: list[MeasuredSize]


class Budget(TypedDict):
    """The artifact of stage budget: {number of a layer: its size}."""

    layers: dict[str, LayerSize]


class GroupFigures(TypedDict):
    """One group of experts; see cluster.describe_grouping."""

    members: list[int]
    centre: int
    size: int
    share: float
    routed_tokens: int
    effective_tokens: float


class Grouping(TypedDict):
    """M = `kept` groups of N `experts`; see cluster.Grouped."""

    experts: int
    kept: int
    expert_map: list[int]
    cost: float
    pruned: list[int]
    fit_tokens: int
    heldout_tokens: int
    groups: list[GroupFigures]


class TokenNeeds(TypedDict):
    """The tokens that a solve must exceed: of one group, and of the layer if all groups are solved jointly."""

    group: int
    joint: int


class LayerGrouping(Grouping):
    """The artifact of stage cluster; `untouched`: the layer stays as it is."""

    layer: int
    by: str
    untouched: bool
    width: int
    needed_tokens: TokenNeeds


class ByPart(TypedDict):
    """A relative squared error on the fitted and on the held-out tokens; None if there are no tokens."""

    fit: float | None
    heldout: float | None


class TokenCounts(TypedDict):
    """The fitted and the held-out tokens of a layer."""

    fit: int
    heldout: int


class ChangeRecord(TypedDict):
    """A solved layer that was changed further: its sizes and tokens, its errors before and after."""

    experts: int
    kept: int
    width: int
    tokens: TokenCounts
    start_error: ByPart
    output_error: ByPart


class JointOrRouted(TypedDict):
    """The error on held-out tokens of the joint solution, and of the one group by group."""

    joint: float | None
    routed: float | None


class Diagnosis(TypedDict):
    """How well `tokens` determine a solution of so many unknowns per output row."""

    tokens: int
    unknowns: int
    effective_rank: float | None


class MethodRecord(TypedDict, total=False):
    """What a method reports about the solve of one group; docs/method.md explains the figures."""

    tokens: int
    unknowns: int
    rank: int
    effective_rank: float | None
    condition: float | None
    objective: ByPart
    ridge: float
    heldout_error_by_ridge: dict[str, float]
    layer_tokens: int
    layer_unknowns: int
    iterations: int
    residual: float
    solved: str
    heldout_error: JointOrRouted


class GroupRecord(MethodRecord):
    """The same with the group, its members and their shares of its usage."""

    group: int
    members: list[int]
    weights: list[float]


class SolveRecord(TypedDict):
    """The solve of one layer: N `experts` before, M = `kept` of I' = `width` neurons after.

    `method` is None if the layer stays as it is.
    """

    method: str | None
    experts: int
    kept: int
    width: int
    tokens: TokenCounts
    output_error: ByPart
    groups: list[GroupRecord]


class LayerSolve(SolveRecord):
    """The artifact of stage solve, beside the merged weights."""

    layer: int
