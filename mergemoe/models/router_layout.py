"""Describe a router for the layout. Only routers of the families in router_headers.ROUTERS can lose rows."""

from collections.abc import Callable
from typing import Any

from mergemoe.checkpoints.router_headers import ROUTERS
from mergemoe.models.families import Family, router_name
from mergemoe.moe.layout_types import RouterLayout

_BIAS = "e_score_correction_bias"


def describe_router(model: Any, name: str, family: Family, stored: Callable[[str], str]) -> RouterLayout:
    """Return the entry `router` of a layout, for one experts module.

    If the family's routing rule is not known, `rule` is None and `keys` is empty.

    Args:
        model: the model.
        name: the name of the experts module.
        family: the family of the experts module.
        stored: a function that returns the stored key of a tensor of the model.
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
