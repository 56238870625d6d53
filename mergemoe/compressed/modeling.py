"""A compressed MoE as an ordinary transformers model: a router with N outputs, M experts behind it.

Every merged experts module holds M experts and a buffer `expert_map` [N] -> [0, M); the stock kernel runs on
expert_map[index], and the routing weights of merged experts add up by themselves. The text of this file is also
modeling_mergemoe.py of every compressed checkpoint, so it imports torch and transformers alone, and a checkpoint
loads without this package.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"this checkpoint needs transformers 5 or newer, and {transformers.__version__} is installed")


def _mapped(stock: Any) -> Any:
    """Nearly all: experts(inputs, chosen, weights)."""

    def forward(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        top_k_index = self.expert_map[top_k_index]
        if self.deduplicate and self.config._experts_implementation == "grouped_mm":
            # A token's equal experts become one; the rest goes to number M, which this kernel skips.
            equal = top_k_index[:, :, None] == top_k_index[:, None, :]
            repeated = equal.tril(-1).any(-1)
            top_k_weights = (equal * top_k_weights[:, None, :]).sum(-1).masked_fill(repeated, 0).to(top_k_weights.dtype)
            top_k_index = top_k_index.masked_fill(repeated, self.num_experts)
        return stock.forward(self, hidden_states, top_k_index, top_k_weights)

    return forward


def _mapped_llama4(stock: Any) -> Any:
    """llama4 gives every expert a batch of its own, already scaled: the batches of merged experts become one."""

    def forward(self: Any, hidden_states: Any) -> Any:
        inputs = hidden_states.view(len(self.expert_map), -1, self.hidden_size)
        outputs = torch.empty_like(inputs)
        for expert in range(self.num_experts):
            members = torch.where(self.expert_map == expert)[0]
            gate, up = (inputs[members].flatten(0, 1) @ self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs[members] = ((up * self.act_fn(gate)) @ self.down_proj[expert]).view(len(members), *inputs.shape[1:])
        return outputs.view(-1, self.hidden_size)

    return forward


def _mapped_jetmoe_router(stock: Any) -> Any:
    """Jetmoe's router sorts the choices by expert: sort them by merged expert instead."""

    def forward(self: Any, hidden_states: Any) -> Any:
        order, _, gates, sizes, logits = stock.forward(self, hidden_states)
        chosen = self.expert_map.repeat_interleave(torch.tensor(sizes, device=order.device))
        again = chosen.argsort(stable=True)
        order, gates = order[again], gates[again]
        sizes = torch.bincount(chosen, minlength=self.kept_experts).tolist()
        return order, order.div(self.top_k, rounding_mode="trunc"), gates, sizes, logits

    return forward


def _mapped_switch(stock: Any) -> Any:
    """Switch's choices are one-hot, [n, 1, N]: make them [n, 1, M]."""

    def forward(self: Any, hidden_states: Any, selected_experts: Any, routing_weights: Any) -> Any:
        mapped = selected_experts.new_zeros(*selected_experts.shape[:-1], self.kept_experts)
        mapped = mapped.index_add(-1, self.expert_map, selected_experts)
        return stock.forward(self, hidden_states, mapped, routing_weights)

    return forward


_FORWARDS = {
    "Llama4TextExperts": _mapped_llama4,
    "JetMoeTopKGating": _mapped_jetmoe_router,
    "SwitchTransformersExperts": _mapped_switch,
}
_COUNTS = ("num_experts", "num_routed_experts", "moe_num_experts")
_WIDTHS = ("intermediate_dim", "intermediate_size", "expert_dim", "ffn_hidden_size")


def mapped_class(stock: type) -> type:
    """Return a subclass of a stock class that maps the chosen experts, then runs what it ran before."""
    forward = _FORWARDS.get(stock.__name__, _mapped)(stock)
    return type("Mapped" + stock.__name__, (stock,), {"forward": forward, "__module__": stock.__module__})


def shrink_experts(module: Any, facts: dict[str, Any], deduplicate: bool = False) -> None:
    """Turn a stock experts module into a smaller one, in place; the checkpoint fills in the values.

    Where each expert has parameters of its own, those of the experts that are gone stay, with no numbers in them: of
    parameters that are missing stock code only warns, these it refuses.

    Args:
        module: the stock module of N experts.
        facts: `experts` [N, M], `width` [I, I'], `parameters` {name: shape}, `expert_map` {name of the buffer: length};
            a name with {} stands for the parameters of M experts, the first of its shape.
        deduplicate: let grouped_mm compute a token's equal experts once.
    """
    owners = {module}
    for path, shape in _each(facts):
        owner, _, name = path.rpartition(".")
        owners.add(module.get_submodule(owner))
        old = module.get_parameter(path)
        smaller = torch.nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad)
        module.get_submodule(owner).register_parameter(name, smaller)
        if isinstance(module.get_submodule(owner), torch.nn.Linear):
            module.get_submodule(owner).out_features, module.get_submodule(owner).in_features = shape
    device = next(module.parameters()).device
    for owner in owners:
        for names, (before, after) in ((_COUNTS, facts["experts"]), (_WIDTHS, facts["width"])):
            for name in names:
                if getattr(owner, name, None) == before:
                    setattr(owner, name, after)
    if hasattr(module, "total_experts"):  # longcat_flash: its identity experts keep their place behind the others
        module.total_experts += facts["experts"][1] - facts["experts"][0]
    ((path, length),) = facts["expert_map"].items()
    owner, _, name = path.rpartition(".")
    router = module.get_submodule(owner)  # jetmoe's; else the module itself
    router.register_buffer(name, torch.zeros(length, dtype=torch.int64, device=device))
    router.__class__ = mapped_class(type(router))
    decorated = hasattr(module, "_is_expert_parallel")  # else there is no kernel but stock code's own
    router.kept_experts, router.deduplicate = facts["experts"][1], deduplicate and decorated
    if decorated:
        module._is_expert_parallel = deduplicate  # makes the kernel honour the number M


def config_facts(model: Any) -> dict[str, Any]:
    """Return {name of a smaller module: its facts} of a model's configuration."""
    try:
        return dict(model.config.mergemoe["experts"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("config.json lists no experts under `mergemoe`: it belongs to another checkpoint") from None


def _smaller_modules(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the smaller modules that a model has, by its own names: a bare model lacks the outer class's prefix."""
    for name, facts in config_facts(model).items():
        for own in (name, name.removeprefix(f"{model.base_model_prefix}.")):
            try:
                model.get_submodule(own)
            except AttributeError:
                continue
            yield own, facts
            break


def check_map(name: str, module: Any, facts: dict[str, Any], missing: Any) -> None:
    """Check the loaded expert_map of a module: kernels take any number for the place of an expert.

    Raises:
        ValueError: it was not stored, or does not map N experts to M, and experts that return their input behind them.
    """
    (before, after), ((path, length),) = facts["experts"], facts["expert_map"].items()
    found = module.get_buffer(path)
    if f"{name}.{path}" in missing:
        raise ValueError(f"{name}.{path} is in no file, so it is not known which experts were merged")
    if found.shape != (length,):
        raise ValueError(f"{name}.{path} has the shape {list(found.shape)}, not [{length}]")
    mapped, rest = found[:before].tolist(), found[before:].tolist()
    if not all(0 <= expert < after for expert in mapped) or rest != list(range(after, after + length - before)):
        raise ValueError(
            f"{name}.{path} holds numbers from {int(found.min())} to {int(found.max())}, but there are {after} experts"
        )


def _each(facts: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    before, after = facts["experts"]
    for path, shape in facts["parameters"].items():
        if "{}" not in path:
            yield path, shape
            continue
        for expert in range(before):
            yield path.format(expert), shape[1:] if expert < after else [0] * len(shape[1:])


@cache
def merged_class(name: str, deduplicate: bool = False) -> Any:
    """Return a subclass of transformers' class `name` whose experts are as few as config.mergemoe says.

    `name` is the class that was compressed, or any other with its layers: the bare model, a classifier.
    """
    stock: Any = getattr(transformers, name)

    class Merged(stock):
        # The stock methods search the source text of the class's own module: answer for the stock class.
        @classmethod
        def _can_set_experts_implementation(cls) -> bool:
            return stock._can_set_experts_implementation()

        @classmethod
        def _can_set_attn_implementation(cls) -> bool:
            return stock._can_set_attn_implementation()

        @classmethod
        def is_custom_code(cls) -> bool:
            return False  # else the stored names that only the stock outer class knows would not be read

        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            smaller = list(_smaller_modules(self))
            if not smaller:
                raise ValueError(f"{name} names its layers otherwise than the checkpoint, so it cannot read them")
            for module, facts in smaller:
                shrink_experts(self.get_submodule(module), facts, deduplicate)

        @classmethod
        def _from_config(cls, config: Any, **kwargs: Any) -> Any:
            if name != config.mergemoe.get("class", name):
                raise ValueError(
                    f"the layers of {name} are made smaller by from_pretrained only. A program that builds the bare "
                    "model from config.json and puts experts of its own into it would compute something else. With "
                    "vLLM, install the package mergemoe beside it, which has a plug-in"
                )
            return super()._from_config(config, **kwargs)

        @classmethod
        def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            for module, facts in _smaller_modules(model):
                lost = [key for key in info["missing_keys"] if key.startswith(f"{module}.")]
                if lost and name != model.config.mergemoe.get("class", name):  # of which transformers itself only warns
                    raise ValueError(f"{name} does not find {lost[0]} under the names that the checkpoint has")
                check_map(module, model.get_submodule(module), facts, info["missing_keys"])
            return (model, info) if output_loading_info else model

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            super().save_pretrained(save_directory, *args, **kwargs)
            Path(save_directory, "modeling_mergemoe.py").write_text(source(), encoding="utf-8")

    Merged.__name__ = Merged.__qualname__ = "MergeMoe" + name
    return Merged


def __getattr__(name: str) -> Any:
    """Return the class that auto_map in config.json names, such as MergeMoeQwen3MoeForCausalLM."""
    stock = name.removeprefix("MergeMoe")
    if stock == name or not hasattr(transformers, stock):
        raise AttributeError(f"transformers {transformers.__version__} has no class {stock}")
    return merged_class(stock)


def source() -> str:
    """Return the text of modeling_mergemoe.py, which is that of this file."""
    return Path(__file__).read_text(encoding="utf-8")
