"""What a layout says of routers; the rows of some can be deleted or joined (experts.ROUTERS)."""

from collections.abc import Callable
from typing import Any

from mergemoe.checkpoints.router_headers import ROUTERS
from mergemoe.models.families import Family, router_name
from mergemoe.moe.layout_types import RouterLayout

_BIAS = "e_score_correction_bias"


def describe_router(model: Any, name: str, family: Family, stored: Callable[[str], str]) -> RouterLayout:
    """Return the layout's facts of the router of one experts module.

    `rule`, with `normalized`, `scaling`, `groups`, `top_groups` and the stored `keys`, is None where it is not known.

    Args:
        model: the model.
        name: of the experts module.
        family: how that holds its experts.
        stored: the key under which a tensor of the model is saved.
    """
    router = router_name(model, name, family)
    module, text = model.get_submodule(router), model.config.get_text_config()
    keys = {"router": stored(f"{router}.weight")}
    if hasattr(module, _BIAS):
        keys["router_bias"] = stored(f"{router}.{_BIAS}")
    return {
        "module": router,
        "class": type(module).__name__,
        "logits": family.logits,
        "rule": ROUTERS.get(model.config.model_type),
        "normalized": bool(getattr(text, "norm_topk_prob", family.top_k != 1)),
        "groups": getattr(text, "n_group", 1) or 1,
        "top_groups": getattr(text, "topk_group", 1) or 1,
        "scaling": float(getattr(text, "routed_scaling_factor", 1.0) or 1.0),
        "keys": keys if model.config.model_type in ROUTERS else {},
    }
