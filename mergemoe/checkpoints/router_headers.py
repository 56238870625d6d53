"""Routers told from a checkpoint's headers: families, sizes, and which of them may lose rows."""

import math
import re

from mergemoe.checkpoints.expert_headers import Headers
from mergemoe.errors import UserError

# Families whose routers are a linear map and the rule of router_rule.Rule, by how they score.
ROUTERS = {
    "qwen2_moe": "softmax",
    "qwen3_moe": "softmax",
    "olmoe": "softmax",
    "mixtral": "softmax",
    "deepseek_v3": "sigmoid",
    "glm4_moe": "sigmoid",
}


_ROUTER = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.gate\.(?:weight|e_score_correction_bias)")


def router_sizes(headers: Headers) -> dict[int, dict[str, int]]:
    """Return {layer: the parameters and bytes of its router}, of the families in `ROUTERS`."""
    found: dict[int, dict[str, int]] = {}
    for key in headers:
        if match := _ROUTER.fullmatch(key):
            layer = found.setdefault(int(match[1]), {"parameters": 0, "bytes": 0})
            layer["parameters"] += math.prod(headers[key]["shape"])
            layer["bytes"] += headers[key]["bytes"]
    return found


def check_router(model_type: str, routing: str, kept: int, top_k: int, groups: int, top_groups: int) -> None:
    """Check that a router of M rows is one that its family can have.

    Args:
        model_type: of the model.
        routing: pruned or folded.
        kept: M.
        top_k: K.
        groups: of experts, among which the router chooses first; 1 where it does not.
        top_groups: of them, in which a token's K experts stand.

    Raises:
        UserError: with the reason, and what to change.
    """
    if model_type not in ROUTERS:
        raise UserError(
            f"this version does not know how {model_type} chooses experts, so rows of its routers can be neither "
            "deleted nor joined: take a method that keeps the routing (docs/models.md)"
        )
    if kept < top_k:
        raise UserError(f"{kept} experts are kept and {top_k} work on a token: keep at least {top_k}")
    if groups > 1 and routing == "folded":
        raise UserError(
            f"the router chooses among {groups} groups of experts first, and what is merged may stand in several of "
            "them: no row can be in all. Take `routing: pruned` or `preserved`"
        )
    if groups > 1 and (kept % groups or kept < 2 * groups):
        raise UserError(
            f"the router chooses among {groups} groups of experts by the two best of each, so {kept} kept experts must "
            f"be a multiple of {groups}, and two or more a group"
        )
    if kept // groups * top_groups < top_k:
        raise UserError(
            f"{top_k} experts work on a token, and they stand in {top_groups} of {groups} groups, which hold "
            f"{kept // groups * top_groups} of {kept} kept experts: keep at least {-(-top_k // top_groups) * groups}"
        )
