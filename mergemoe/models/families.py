"""Families: how each experts class of transformers stores its weights.

Classes with transformers' decorator carry flags, from which `_decorated` reads the family. The few classes without it
have a row in `_OWN`. The layout, the capture and the compressed layer all use this table.
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

from mergemoe.checkpoints import config_keys
from mergemoe.errors import UserError
from mergemoe.moe.packing import Stacking

Roles = dict[str, tuple[str, Stacking]]  # role -> (parameter of the module, its place in the parameter)

ALONE, GATE, UP = Stacking(), Stacking(0, 2), Stacking(1, 2)


@dataclass(frozen=True)
class Family:
    """The way in which one class of experts modules holds its experts.

    roles: the place of each role in the module's parameters; a name with {} stands for one parameter per expert.
    experts: the attribute with the number of experts.
    identity: the attribute with the number of identity experts, which follow the others and return their input.
    activation: the attribute with the activation function.
    routed_by: the attribute with the router, if the module holds it itself and not its parent.
    logits: the position of the logits among the router's outputs.
    top_k: the number of experts per token, if the configuration does not state it.
    expert_map: the attribute for the map in the compressed module.
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
    """Return the family given by the flags that transformers' decorator sets."""
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
    "DogeCDMoE": "the experts are rows of an embedding, picked by product keys, so there is nothing to merge",
    "NllbMoeExperts": "its top-2 routing drops tokens above a capacity shared by the batch, which is not supported yet",
    "DiffusionGemmaTextExperts": "the model denoises blocks of tokens, so its experts never see a plain pass over text",
    "Ernie4_5_VLMoeMoeExperts": "a layer has two sets of experts of different widths, for text and for images",
    "Inkling2Experts": "a layer reads outputs of earlier layers, which the run layer by layer does not keep",
}

_AUTO = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}


def model_class(config: Any) -> Any:
    """Return the class of transformers that generates text with this configuration.

    Raises:
        UserError: transformers has no such class.
    """
    for names in _AUTO.values():
        found = getattr(transformers, names.get(config.model_type, ""), None)
        if found and isinstance(config, found.config_class):  # otherwise the class is for the text part only
            return found
    raise UserError(
        f"transformers {transformers.__version__} has no language model for the model_type {config.model_type!r}. Only "
        "language models can be compressed (docs/models.md)"
    )


def auto_classes(architecture: str) -> dict[str, str]:
    """Return {auto class: the class that it builds} of all auto classes of transformers for a model's configuration."""
    cls, found = getattr(transformers, architecture), {}
    for auto in sorted(name for name in dir(transformers) if name.startswith("AutoModel")):
        known = getattr(getattr(transformers, auto), "_model_mapping", {})
        if cls.config_class not in known:
            continue
        made = known[cls.config_class]
        for one in made if isinstance(made, tuple) else (made,):
            if issubclass(cls.config_class, one.config_class):  # otherwise the class is for the text part only
                found.setdefault(auto, one.__name__)
    return {**found, auto_class(architecture): architecture}


def auto_class(architecture: str) -> str:
    """Return the name of the auto class that loads a class of transformers.

    Raises:
        UserError: the class does not generate text.
    """
    for auto, names in _AUTO.items():
        if architecture in names.values():
            return auto
    raise UserError(
        f"{architecture} is not one of transformers' classes that generate text, so a saved copy could not be loaded "
        f"again. Load the model with {', '.join(_AUTO)}"
    )


def family_of(module: nn.Module) -> Family | None:
    """Return the family of a module; None if the module holds no routed experts.

    Raises:
        UserError: experts of this class cannot be merged; the message gives the reason.
    """
    name = type(module).__mro__[1].__name__ if type(module).__name__.startswith("Mapped") else type(module).__name__
    if name in REFUSED:
        raise UserError(f"experts of class {name} cannot be merged: {REFUSED[name]}. docs/models.md lists what works")
    if name in _OWN:
        return _OWN[name]
    return _decorated(module) if hasattr(module, "_is_expert_parallel") else None


def holds_experts(module: nn.Module) -> bool:
    """Return whether a module holds routed experts that can be merged, even if its class is now derived from it."""
    return hasattr(module, "_is_expert_parallel") or any(cls.__name__ in _OWN for cls in type(module).__mro__)


def experts_modules(model: nn.Module) -> dict[str, tuple[Any, Family]]:
    """Return {name: (module, family)} for every module of routed experts."""
    found = {name: (module, family_of(module)) for name, module in model.named_modules()}
    return {name: (module, family) for name, (module, family) in found.items() if family is not None}


def nested_attribute(module: Any, path: str) -> Any:
    """Return the attribute that a dotted path names."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def stacked_parameter(module: nn.Module, path: str, experts: int) -> torch.Tensor:
    """Return the parameter that holds one role of all experts; parameters of single experts are stacked into a copy."""
    if "{}" not in path:
        return module.get_parameter(path).detach()
    return torch.stack([module.get_parameter(path.format(expert)).detach() for expert in range(experts)])


def router_name(model: PreTrainedModel, name: str, family: Family) -> str:
    """Return the name of the router of the experts module `name`.

    Raises:
        UserError: the block has no router under the names that transformers uses.
    """
    if family.routed_by:
        return f"{name}.{family.routed_by}"
    block = name.rpartition(".")[0]
    for router in ("gate", "router"):
        if hasattr(model.get_submodule(block), router):
            return f"{block}.{router}"
    raise UserError(
        f"{block} ({type(model.get_submodule(block)).__name__}) has no router named `gate` or `router`, as "
        "transformers' own classes have. This class is not supported (docs/models.md)"
    )


def model_top_k(config: Any, family: Family) -> int:
    """Return the number of experts per token.

    Raises:
        UserError: the configuration does not state it.
    """
    if found := family.top_k or config_keys.config_top_k(config.get_text_config().to_dict()):
        return found
    raise UserError(
        f"{config.model_type}: the configuration does not state the number of experts per token. Add "
        "`num_experts_per_tok` to config.json"
    )
