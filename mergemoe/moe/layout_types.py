"""Types of the layout: where a checkpoint stores its experts and routers, and how they compute.

The layout is plain JSON, written by models/layout.py and read by every later stage. It has one entry per MoE layer.
"""

from typing import Any, NotRequired, TypedDict


class StackingFacts(TypedDict):
    """The fields of packing.Stacking."""

    part: int
    parts: int
    interleaved: bool
    transposed: bool
    flat: bool


class HeldRole(TypedDict):
    """One role (gate, up, down or a bias) of all experts inside their module.

    parameter: its name in the module, with `{}` in it if each expert has a parameter of its own.
    held: how the parameter holds the role.
    shape: [N, ., .] of the N experts, [N, .] of a bias.
    spare: rows at the end of the parameter that no expert uses.
    """

    parameter: str
    held: StackingFacts
    shape: list[int]
    spare: int


class StoredRole(TypedDict):
    """The same role in the files.

    keys: the stored keys, in the order of the experts; a single one if `fused`.
    identity: further stored keys, of experts that return their input.
    fused: whether one tensor holds all experts.
    dtype: as safetensors names it.
    stored: how a stored tensor holds the role.
    """

    keys: list[str]
    identity: list[str]
    fused: bool
    dtype: str
    stored: StackingFacts


class RoleLayout(HeldRole, StoredRole):
    """Both; in the layout of a model in memory only the keys of HeldRole are there."""


class ActivationFacts(TypedDict):
    """The fields of expert_forward.Activation."""

    name: str
    rule: str
    limit: float | None
    alpha: float
    norm_eps: float | None


class NormLayout(TypedDict):
    """The norm after the down-projection: its stored key."""

    key: str


class ExpertMapLayout(TypedDict):
    """The expert_map [N] of a compressed checkpoint: its stored key, and the name of the module's buffer."""

    key: str
    buffer: str


RouterLayout = TypedDict(
    "RouterLayout",
    {
        "module": str,
        "class": str,  # its class in transformers
        "logits": int,  # the place of the logits in what the module returns
        "rule": str | None,  # softmax or sigmoid; None if this version does not know how the family chooses
        "normalized": bool,  # this and the following as in router_rule.Rule
        "groups": int,
        "top_groups": int,
        "scaling": float,
        "keys": dict[str, str],  # {router, router_bias: stored key}; empty if `rule` is None
    },
)


class LayerLayout(TypedDict):
    """One MoE layer: N `experts` of `width` I, K = `top_k` of them for a token, `identity` more that do nothing."""

    layer: int
    module: str
    experts: int
    identity: int
    width: int
    hidden_size: int
    top_k: int
    activation: ActivationFacts
    norm: NormLayout | None
    router: RouterLayout
    roles: dict[str, RoleLayout]
    expert_map: ExpertMapLayout


class ModelLayout(TypedDict):
    """The layout of a model, on disk or in memory (layout.layout_of_model)."""

    model_type: str
    architecture: str
    dtype: str
    hidden_size: int
    vocab_size: int
    decoder_layers: int
    layers: list[LayerLayout]


class Layout(ModelLayout):
    """The layout of a checkpoint: a folder, or a hub id with a revision; `files` has the sha256 of each file.

    In the artifact, `cost` is what cost.count_cost gives, and `license` what license.stated_license does, if anything.
    """

    path: str
    revision: NotRequired[str]
    files: dict[str, str]
    cost: NotRequired[dict[str, float]]
    license: NotRequired[dict[str, Any]]
