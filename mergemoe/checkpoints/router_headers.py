"""Find routers in a checkpoint's headers, and check which of them may lose rows."""

import math
import re

from mergemoe.checkpoints.expert_headers import Headers
from mergemoe.errors import UserError

# {family: its score function}, for routers that are a linear map followed by the rule of router_rule.Rule.
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
    """Return {layer: the parameters and bytes of its router}; only routers of families in `ROUTERS` are found."""
    found: dict[int, dict[str, int]] = {}
    for key in headers:
        if match := _ROUTER.fullmatch(key):
            layer = found.setdefault(int(match[1]), {"parameters": 0, "bytes": 0})
            layer["parameters"] += math.prod(headers[key]["shape"])
            layer["bytes"] += headers[key]["bytes"]
    return found


def check_router(model_type: str, routing: str, kept: int, top_k: int, groups: int, top_groups: int) -> None:
    """Check that the model's family can have a router of M rows.

    Args:
        model_type: the model's model_type.
        routing: pruned or folded.
        kept: the number M of rows.
        top_k: the number K of experts per token.
        groups: the number of groups among which the router chooses first; 1 if it has no groups.
        top_groups: the number of groups that hold a token's K experts.

    Raises:
        UserError: it cannot; the message gives the reason and the change to make.
    """
    if model_type not in ROUTERS:
        raise UserError(
            f"the routing rule of {model_type} is not known to this version, so rows of the routers can be neither "
            "deleted nor joined. Use a method that keeps the routing (docs/models.md)"
        )
    if kept < top_k:
        raise UserError(f"{kept} experts are kept, but {top_k} work on a token. Keep at least {top_k}")
    if groups > 1 and routing == "folded":
        raise UserError(
            f"the router first chooses among {groups} groups of experts. A merged expert may have members in several "
            "groups, but its row can be in one only. Use `routing: pruned` or `preserved`"
        )
    if groups > 1 and (kept % groups or kept < 2 * groups):
        raise UserError(
            f"{kept} experts are kept, but the router chooses among {groups} groups by the two best experts of each. "
            f"Keep a multiple of {groups}, at least two per group"
        )
    if kept // groups * top_groups < top_k:
        raise UserError(
            f"{top_k} experts work on a token and come from {top_groups} of {groups} groups, which hold "
            f"{kept // groups * top_groups} of {kept} kept experts. Keep at least {-(-top_k // top_groups) * groups}"
        )
