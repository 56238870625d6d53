"""Refuse a model to which another library has attached what compress can neither see nor carry over.

Forward, backward and state-dict hooks of modules stay where they are (replace.py), so they are no fault.
"""

from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mergemoe.errors import UserError
from mergemoe.models import families
from mergemoe.models.tied_weights import check_held_ties

_QUANTIZERS = ("torch.ao.", "torchao.", "bitsandbytes.")
_FRESH = "Compress the model as transformers loads it, and attach that afterwards"


def check_attached(model: Any) -> None:
    """Check that experts and routers are plain modules with plain parameters, and that calls run their own code.

    Raises:
        UserError: something is attached that would be lost, or that would go on computing with the old experts.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"the model has adapters of peft, which belong to the experts as they are. {_FRESH}")
    for name, module in model.named_modules():
        if _has_own_forward(module):
            raise UserError(
                f"{name or 'the model'} has a `forward` of its own: accelerate, for example, puts one there for "
                "`device_map` over several devices and for offloading. It would go on calling the old code. Load the "
                "model onto one device, or take the hooks off with accelerate.hooks.remove_hook_from_submodules(model)"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"{name or 'the model'} is compiled, and compiled code does not call the hooks by which compress reads "
                "a layer's tokens. Compress first, then call compile()"
            )
        if type(module).__module__.startswith(_QUANTIZERS):
            raise _quantized(name, type(module).__name__)
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise UserError(f"{name} has no numbers in memory (it is on the device `meta`). Load the whole model")
    check_held_ties(model, "the model")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(f"{name} has no numbers in memory (it is on the device `meta`). Load the whole model")
        if parameter.dtype.itemsize == 1:
            raise _quantized(name, str(parameter.dtype).removeprefix("torch."))
    _check_dtypes(model)
    held = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, module in _replaced(model).items():
        _check_module(name, module)
        for key, parameter in module.named_parameters():
            _check_parameter(f"{name}.{key}", parameter, held[id(parameter)])


def _check_dtypes(model: Any) -> None:
    """Check that all layers' experts have one dtype: a layer that was cast by hand would stop in the middle."""
    found: dict[str, tuple[str, Any]] = {}
    for name, (module, _) in families.experts_modules(model).items():
        for key, parameter in module.named_parameters():
            first, dtype = found.setdefault(key, (name, parameter.dtype))
            if dtype != parameter.dtype:
                one, other = (str(each).removeprefix("torch.") for each in (dtype, parameter.dtype))
                raise UserError(
                    f"{first}.{key} is in {one} and {name}.{key} in {other}: a layer was cast by hand. Cast the whole "
                    "model, as in `model.to(torch.bfloat16)`"
                )


def _quantized(name: str, kind: str) -> UserError:
    return UserError(
        f"{name} is quantized in memory ({kind}), and what is computed or saved from it would be another model's. Load "
        "the checkpoint without quantizing it, or dequantized, compress it, and quantize the result (`quantize=`)"
    )


def _has_own_forward(module: nn.Module) -> bool:
    """Return whether a call of a module does not run its class's code; what accelerate left behind is taken away."""
    own = vars(module).get("forward")
    if own is not None and getattr(own, "__func__", None) is type(module).forward and own.__self__ is module:
        del module.forward
        own = None
    return own is not None


def _replaced(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of the experts, the routers and their parts; parametrized ones have another class."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not families.holds_experts(module):
            continue
        block = model.get_submodule(name.rpartition(".")[0])
        beside = {f"{name.rpartition('.')[0]}.{key}": getattr(block, key, None) for key in ("gate", "router")}
        for start, part in {name: module, **beside}.items():
            if isinstance(part, nn.Module):
                found |= {f"{start}.{inner}".rstrip("."): each for inner, each in part.named_modules()}
    return found


def _check_module(name: str, module: nn.Module) -> None:
    hooks: list[Any] = [*module._forward_pre_hooks.values()]
    makers = [type(hook).__module__ for hook in hooks]
    if parametrize.is_parametrized(module) or any(maker.startswith("torch.nn.utils") for maker in makers):
        raise UserError(
            f"{name} is parametrized: its weights are computed at each call, so they cannot be replaced. Make them "
            "plain with torch.nn.utils.parametrize.remove_parametrizations (or the function that undoes the weight "
            f"norm or the pruning). {_FRESH}"
        )
    if not (kind := type(module)).__module__.startswith(("transformers.", "torch.nn.")):
        raise UserError(f"{name} is a {kind.__module__}.{kind.__name__}, which is no stock module. {_FRESH}")


def _check_parameter(name: str, parameter: Tensor, owners: int) -> None:
    if type(parameter) is not nn.Parameter:
        raise UserError(
            f"{name} is a {type(parameter).__name__}, not a plain parameter: it is sharded or quantized. {_FRESH}"
        )
    if owners > 1:
        raise UserError(f"{name} belongs to {owners} modules, which would lose their tie. Untie them: give each a copy")
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise UserError(
            f"{name} has hooks on its gradient, and compress puts a smaller parameter in its place. {_FRESH}"
        )
