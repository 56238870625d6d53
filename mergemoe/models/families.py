"""What differs between the experts modules of transformers, as data.

Modules that carry transformers' decorator say of themselves how they hold their weights; the few that do not have a
row of their own. All else (layout, capture, the compressed layer) asks here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from mergemoe.checkpoints import expert_headers
from mergemoe.errors import UserError
from mergemoe.moe.packing import Stacking

Roles = dict[str, tuple[str, Stacking]]  # role -> (parameter of the module, where in it)

ALONE, GATE, UP = Stacking(), Stacking(0, 2), Stacking(1, 2)


@dataclass(frozen=True)
class Family:
    """How one class of experts modules holds its experts.

    roles: where each role lies in the module's parameters; with {} in its name, every expert has one of its own.
    experts, identity: attributes with the number of experts, and of those that give back their input, after them.
    activation: attribute of the activation function.
    routed_by: attribute of the module itself that routes, where not its parent does.
    logits: which output of the router are the logits.
    top_k: how many experts work on a token, where the configuration does not say.
    expert_map: where the compressed module keeps its map.
    """

    roles: Roles
    experts: str = "num_experts"
    identity: str | None = None
    activation: str = "act_fn"
    routed_by: str | None = None
    logits: int = 0
    top_k: int | None = None
    expert_map: str = "expert_map"


def _joined(down: Stacking = ALONE, **how: bool) -> Roles:
    return {
        "gate": ("gate_up_proj", Stacking(0, 2, **how)),
        "up": ("gate_up_proj", Stacking(1, 2, **how)),
        "down": ("down_proj", down),
    }


def _decorated(module: Any) -> Family:
    """Read the flags that transformers' decorator sets."""
    how = {"transposed": module.is_transposed, "interleaved": not module.is_concatenated}
    down = Stacking(transposed=module.is_transposed)
    roles = _joined(down, **how) if module.has_gate else {"up": ("up_proj", down), "down": ("down_proj", down)}
    if module.has_bias:
        how["transposed"] = False
        joined = {"gate_bias": Stacking(0, 2, **how), "up_bias": Stacking(1, 2, **how)}
        roles |= {role: ("gate_up_proj_bias", where) for role, where in joined.items()}
        roles["down_bias"] = ("down_proj_bias", ALONE)
    return Family(roles)


_OWN = {
    "Step3p7Experts": Family(_joined()),
    "LongcatFlashExperts": Family(_joined(), experts="num_routed_experts", identity="zero_expert_num"),
    "Llama4TextExperts": Family(_joined(Stacking(transposed=True), transposed=True), logits=1),
    "DbrxExperts": Family(
        {
            "gate": ("mlp.w1", Stacking(flat=True)),
            "up": ("mlp.v1", Stacking(flat=True)),
            "down": ("mlp.w2", Stacking(flat=True, transposed=True)),
        },
        activation="mlp.activation_fn",
    ),
    "JetMoeMoE": Family(
        {
            "gate": ("input_linear.weight", GATE),
            "up": ("input_linear.weight", UP),
            "down": ("output_linear.weight", ALONE),
        },
        experts="router.num_experts",
        activation="activation",
        routed_by="router",
        logits=4,
        expert_map="router.expert_map",
    ),
    "SwitchTransformersExperts": Family(
        {"up": ("expert_{}.wi.weight", ALONE), "down": ("expert_{}.wo.weight", ALONE)},
        activation="expert_0.act",
        logits=2,
        top_k=1,
    ),
}

REFUSED = {
    "DogeCDMoE": "its experts are rows of an embedding, picked by product keys: there is nothing to merge",
    "NllbMoeExperts": "its top-2 routing drops tokens over a capacity shared by the batch, which no adapter covers yet",
    "DiffusionGemmaTextExperts": "it denoises blocks of tokens, and a pass over text is not what its experts see",
    "Ernie4_5_VLMoeMoeExperts": "a layer has two sets of experts, of different widths, for text and for images",
    "Inkling2Experts": "its layers read the outputs of earlier ones, which the pass layer by layer does not carry",
}

_AUTO = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}


def model_class(config: Any) -> Any:
    """Return the class that transformers has for a model of this configuration that writes text.

    Raises:
        UserError: where there is none.
    """
    for names in _AUTO.values():
        found = getattr(transformers, names.get(config.model_type, ""), None)
        if found and isinstance(config, found.config_class):  # else the class is that of its text half alone
            return found
    raise UserError(f"transformers {transformers.__version__} has no language model for {config.model_type!r}")


def auto_class(architecture: str) -> str:
    """Return the name of the auto class that loads a class of transformers.

    Raises:
        UserError: where it is none that writes text.
    """
    for auto, names in _AUTO.items():
        if architecture in names.values():
            return auto
    raise UserError(
        f"{architecture} is no class of transformers that writes text ({', '.join(_AUTO)}): load the model with one of "
        "these, so that what is saved can be loaded again"
    )


def family_of(module: nn.Module) -> Family | None:
    """Return how a module holds experts; None where it is no module of routed experts.

    Raises:
        UserError: where it is one that cannot be merged, with the reason.
    """
    name = type(module).__mro__[1].__name__ if type(module).__name__.startswith("Mapped") else type(module).__name__
    if name in REFUSED:
        raise UserError(f"experts of class {name} cannot be merged: {REFUSED[name]}")
    if name in _OWN:
        return _OWN[name]
    return _decorated(module) if hasattr(module, "_is_expert_parallel") else None


def experts_modules(model: nn.Module) -> dict[str, tuple[Any, Family]]:
    """Return {name: (module, family)} of the routed experts."""
    found = {name: (module, family_of(module)) for name, module in model.named_modules()}
    return {name: (module, family) for name, (module, family) in found.items() if family is not None}


def nested_attribute(module: Any, path: str) -> Any:
    """Return what a dotted path names."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def stacked_parameter(module: nn.Module, path: str, experts: int) -> torch.Tensor:
    """Return the parameter that holds a role of all experts; where each has one of its own, a copy that stacks them."""
    if "{}" not in path:
        return module.get_parameter(path).detach()
    return torch.stack([module.get_parameter(path.format(expert)).detach() for expert in range(experts)])


def router_name(model: PreTrainedModel, name: str, family: Family) -> str:
    """Return the name of the module that routes to the experts module `name`.

    Raises:
        UserError: where the block holds none under the names that transformers uses.
    """
    if family.routed_by:
        return f"{name}.{family.routed_by}"
    block = name.rpartition(".")[0]
    for router in ("gate", "router"):
        if hasattr(model.get_submodule(block), router):
            return f"{block}.{router}"
    raise UserError(f"{block} ({type(model.get_submodule(block)).__name__}) has no router named `gate` or `router`")


def model_top_k(config: Any, family: Family) -> int:
    """Return how many experts work on a token.

    Raises:
        UserError: where it is not said.
    """
    if found := family.top_k or expert_headers.config_top_k(config.get_text_config().to_dict()):
        return found
    raise UserError(f"{config.model_type}: the configuration does not say how many experts work on a token")
