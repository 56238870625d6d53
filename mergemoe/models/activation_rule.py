"""Find the activation rule of an experts module: how it computes features from gate and up.

The rule is one of moe/expert_forward.py and needs no transformers.
"""

from typing import Any

import torch

from mergemoe.errors import UserError
from mergemoe.models.families import Family, nested_attribute
from mergemoe.moe.expert_forward import FUNCTIONS, RULES, Activation


def activation_of(name: str, module: Any, family: Family) -> Activation:
    """Return the rule that computes the same features as the module does.

    Rules are tried on random numbers from a range that reaches every limit (clamp) that modules use.

    Raises:
        UserError: no rule gives the module's features.
    """
    x = torch.linspace(-30, 30, 2 * 241, dtype=torch.float64)
    gate, up = x[torch.randperm(482, generator=torch.Generator().manual_seed(0))].chunk(2)
    constants = {
        "limit": _constant(module, "limit", "swiglu_limit"),
        "alpha": _constant(module, "alpha", "swiglu_alpha"),
    }
    norm_eps = float(module.post_expert_norm.eps) if getattr(module, "has_post_expert_norm", False) else None
    gated = "gate" in family.roles
    if gated and hasattr(module, "_apply_gate"):
        interleaved = family.roles["gate"][1].interleaved
        expected = module._apply_gate(torch.stack([gate, up], 1).flatten() if interleaved else torch.cat([gate, up]))
    else:
        act = nested_attribute(module, family.activation)
        expected = act(gate) * up if gated else act(up)
    for rule, needed in RULES.items():
        if any(constants[constant] is None for constant in needed):
            continue
        used: dict[str, Any] = {constant: constants[constant] for constant in needed}
        for function in FUNCTIONS:
            known = Activation(function, rule, **used, norm_eps=norm_eps)
            if torch.allclose(known(up, gate if gated else None).to(expected), expected, rtol=1e-6, atol=1e-6):
                return known
    raise UserError(
        f"{name} ({type(module).__name__}): its activation matches no rule of this version. The stages could not "
        "compute its features. docs/models.md lists the models that work"
    )


def _constant(module: Any, *names: str) -> float | None:
    """Return a constant of the module, by the first of its possible names that is set and not 0."""
    return next((float(value) for name in names if (value := getattr(module, name, None))), None)
