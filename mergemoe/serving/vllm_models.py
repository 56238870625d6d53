"""vLLM's own model classes with M experts behind a router of N rows.

vLLM builds every MoE layer by one function, which makes a router and experts from the same numbers. While a stock class
builds itself, that function is replaced: the router is made for N experts, by vLLM's own rules, and its choices are
mapped by `expert_map`; the experts are M of width I'. So each family keeps its attention, shared experts, routing rule
and reading of weights, and the kernels see nothing new.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import vllm  # pyright: ignore[reportMissingImports]
from torch import Tensor
from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]
from vllm.distributed import get_pp_group  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers import fused_moe  # pyright: ignore[reportMissingImports]

from mergemoe.serving.vllm_plugin import PREFIX

if not hasattr(fused_moe, "FusedMoEFactory"):
    raise ImportError(f"mergemoe serves compact checkpoints with vLLM 0.32 or newer; this is vLLM {vllm.__version__}")

from vllm.model_executor.layers.fused_moe.config import RoutingMethodType  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.fused_moe.router.router_factory import (  # pyright: ignore[reportMissingImports]
    create_fused_moe_router,
)

# Options of a layer with which the choices of the router would pass by `expert_map`, or mean something else.
REFUSED = ("enable_eplb", "fuse_shared_experts", "zero_expert_type", "hash_indices_table", "router")
FORMAT = 2  # the newest of a compact checkpoint that is known here


class MappedRouter(BaseRouter):
    """A router of N experts whose choices are those of the M that they were merged to.

    vLLM has kernels that route by themselves where they know the rule: `Custom` is none of these.
    """

    routing_method_type = RoutingMethodType.Custom

    def __init__(self, stock: Any, length: int, kept: int):
        super().__init__(top_k=stock.top_k, global_num_experts=kept)
        self.stock, self.kept = stock, kept
        self.expert_map = torch.zeros(length, dtype=torch.int64)

    def _compute_routing(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        weights, chosen = self.stock._compute_routing(*args, **kwargs)
        return weights, self.expert_map[chosen.long()].to(chosen.dtype)

    def set_map(self, name: str, found: Tensor) -> None:
        """Set the map that a checkpoint has, after checking it: a kernel takes any number for the place of an expert.

        Raises:
            ValueError: it does not map N experts to M.
        """
        if found.shape != self.expert_map.shape:
            raise ValueError(f"{name} has the shape {list(found.shape)}, not {list(self.expert_map.shape)}")
        if not (int(found.min()) >= 0 and int(found.max()) < self.kept):
            raise ValueError(
                f"{name} holds numbers from {int(found.min())} to {int(found.max())}, but there are {self.kept} experts"
            )
        self.expert_map.copy_(found)


def layer_number(name: str) -> int:
    """Return the number of the layer in the name of a module or tensor."""
    return int(re.findall(r"\.(\d+)\.", f".{name}.")[0])


@contextmanager
def smaller_layers(facts: dict[int, dict[str, Any]]) -> Iterator[dict[int, MappedRouter]]:
    """Let the MoE layers that are built in this context be as small as a checkpoint's, and yield their routers.

    Args:
        facts: {layer: `experts` [N, M] and `width` [I, I']}; other layers stay as they are.
    """
    stock, routers = fused_moe.FusedMoEFactory, dict[int, MappedRouter]()

    def make(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(stock).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        number = layer_number(given["prefix"])
        if number not in facts:
            return stock(*args, **kwargs)
        (whole, kept), (before, width) = facts[number]["experts"], facts[number]["width"]
        if (given["num_experts"], given["intermediate_size"]) != (whole, before):
            raise ValueError(
                f"{given['prefix']}: vLLM builds {given['num_experts']} experts of width {given['intermediate_size']}, "
                f"and the checkpoint was compressed from {whole} of width {before}"
            )
        if asked := [name for name in REFUSED if given[name]]:
            raise ValueError(f"{given['prefix']}: a compact checkpoint cannot be served with {', '.join(asked)}")
        routers[number] = given["router"] = MappedRouter(_stock_router(given), whole, kept)
        return stock(**given | {"num_experts": kept, "intermediate_size": width})

    with _in_all_modules(stock, make):
        yield routers


def _stock_router(given: dict[str, Any]) -> Any:
    """Return the router that vLLM makes for a layer."""
    takes = inspect.signature(create_fused_moe_router).parameters
    rule = {name: value for name, value in given.items() if name in takes}
    if given["apply_routed_scale_to_output"]:
        rule["routed_scaling_factor"] = 1.0  # the layer does it
    return create_fused_moe_router(global_num_experts=given["num_experts"], **rule)


@contextmanager
def _in_all_modules(stock: Callable[..., Any], other: Callable[..., Any]) -> Iterator[None]:
    """Replace a function in every module of vLLM that has imported its name."""
    name = stock.__name__
    holders = [
        module for key, module in sys.modules.items() if key.startswith("vllm.") and vars(module).get(name) is stock
    ]
    for module in holders:
        setattr(module, name, other)
    try:
        yield
    finally:
        for module in holders:
            setattr(module, name, stock)


def _facts(config: Any) -> dict[int, dict[str, Any]]:
    compressed = config.mergemoe
    if compressed["format"] > FORMAT:
        raise ValueError(f"the checkpoint has format {compressed['format']}, and this mergemoe knows {FORMAT}")
    return {layer_number(name): facts for name, facts in compressed["experts"].items()}


@cache
def merged_class(name: str) -> Any:
    """Return a subclass of vLLM's class `name` whose experts are as few as config.json says."""
    stock = ModelRegistry.models[name].load_model_cls()

    class Merged(stock):
        def __init__(self, *, vllm_config: Any, prefix: str = ""):
            facts = _facts(vllm_config.model_config.hf_config)
            with smaller_layers(facts) as routers:
                super().__init__(vllm_config=vllm_config, prefix=prefix)
            if not routers or get_pp_group().world_size == 1 and routers.keys() != facts.keys():
                raise ValueError(
                    f"vLLM's {name} builds the MoE layers {sorted(routers)} in a way that is known here, and the "
                    f"checkpoint has merged experts in {sorted(facts)}"
                )
            self.mapped_routers = routers

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
            found = set[int]()

            def others() -> Iterator[tuple[str, Tensor]]:
                for key, tensor in weights:
                    if not key.endswith(".expert_map"):
                        yield key, tensor
                    elif (number := layer_number(key)) in self.mapped_routers:
                        self.mapped_routers[number].set_map(key, tensor)
                        found.add(number)

            loaded = super().load_weights(others())
            if missing := sorted(self.mapped_routers.keys() - found):
                raise ValueError(f"layers {missing} have no expert_map, so it is not known which experts were merged")
            return loaded

    Merged.__name__ = Merged.__qualname__ = f"{PREFIX}{name}"
    return Merged


def __getattr__(name: str) -> Any:
    """Return the class that config.json of a compact checkpoint names, such as MergeMoeQwen3MoeForCausalLM."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return merged_class(name.removeprefix(PREFIX))
