"""Run a decoder layer by layer, one layer's weights in memory at a time.

Three steps: embeddings, final norm and head are loaded; a dry pass of the stock decoder, whose layers only
note their arguments, makes masks, positions and rotary embeddings for every batch, whatever the architecture;
then the layers run outside, the batches inside. Loading goes through transformers' own converters, so that
stored experts of any form arrive as the modules expect them. Bit-equal to the ordinary forward (tests).

These are internal functions of transformers: its version is pinned, and the test of equality guards it.
"""

import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from mergemoe import checkpoint

Batch = dict[str, Tensor]


def empty_model(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model with parameters on the meta device; buffers are real, since rotary tables are in no file."""
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype, attn_implementation=None, experts_implementation="eager"
        )
    return model.eval()


def stored_keys(model: PreTrainedModel, headers: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return {stored key: (parameter of the model, which of the parts joined into it)}."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    part = {pattern: i for converter in converters for i, pattern in enumerate(converter.source_patterns)}
    own = model.state_dict()
    renamed = {key: rename_source_key(key, renamings, converters, model.base_model_prefix, own) for key in headers}
    return {key: (parameter, part[pattern] if pattern else 0) for key, (parameter, pattern) in renamed.items()}


def experts_modules(model: nn.Module) -> dict[str, Any]:
    """Return {name: module} of the routed experts; only transformers' decorator sets the attribute asked for."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


def decoder_layers(model: PreTrainedModel) -> tuple[Any, Any, str]:
    """Return the decoder, the list of its layers, and the prefix of their parameters' names."""
    decoder: Any = model.get_decoder()
    if decoder is model:  # Llama4ForCausalLM answers with itself
        decoder = model.model
    layers = next(getattr(decoder, name) for name in ("layers", "blocks") if hasattr(decoder, name))
    prefix = next(name for name, module in model.named_modules() if module is layers)
    return decoder, layers, prefix + "."


class LayeredModel:
    """A checkpoint whose parameters are loaded and dropped by name."""

    def __init__(self, folder: str | Path, dtype: torch.dtype, device: torch.device):
        self.folder, self.dtype, self.device = Path(folder), dtype, device
        self.model = empty_model(folder, dtype)
        for name, buffer in self.model.named_buffers():
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[leaf] = buffer.to(device)
        self.headers = checkpoint.read_headers(folder)
        self.parameter_of = {key: name for key, (name, _) in stored_keys(self.model, self.headers).items()}

    def load(self, wanted: Callable[[str], bool]) -> None:
        """Fill the parameters whose name in the model is `wanted`.

        Raises:
            RuntimeError: where a stored tensor does not fit its parameter.
        """
        keys = [key for key, name in self.parameter_of.items() if wanted(name)]
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(self.folder / file, "pt"))
                for file in sorted({self.headers[key]["file"] for key in keys})
            }
            slices = {key: files[self.headers[key]["file"]].get_slice(key) for key in keys}
            settings = LoadStateDictConfig(
                dtype=self.dtype,
                dtype_plan=self.model._get_dtype_plan(self.dtype),
                weight_mapping=list(get_model_conversion_mapping(self.model)),  # type: ignore[arg-type]  # fresh: it holds state
                device_map={"": self.device},
            )
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, settings, None)
        if info.mismatched_keys or info.conversion_errors:
            raise RuntimeError(f"{self.folder}: {info}")

    def unload(self, module: nn.Module) -> None:
        """Send a module's parameters back to the meta device, and the memory back to the system."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    empty = torch.empty_like(parameter, device="meta")
                    part._parameters[name] = nn.Parameter(empty, requires_grad=False)
        gc.collect()
        try:  # without it the peak is about twice as high; glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


@torch.no_grad()
def prepare(layered: LayeredModel, batches: list[Batch]) -> tuple[list[Tensor], list[list[tuple[Any, Any]]]]:
    """Run the dry pass; return the embedded batches, and per batch and layer the other arguments."""
    decoder, layers, prefix = decoder_layers(layered.model)
    layered.load(lambda name: not name.startswith(prefix))
    layered.model.tie_weights()
    hidden: list[Tensor] = []
    arguments: list[list[tuple[Any, Any]]] = []

    def recorder(layer: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if layer == 0:
                hidden.append(hidden_states)
            arguments[-1].append((args, kwargs))
            return hidden_states

        return forward

    for i, layer in enumerate(layers):
        layer.forward = recorder(i)
    try:
        for batch in batches:
            arguments.append([])
            decoder(**batch, use_cache=False)
    finally:
        for layer in layers:
            del layer.forward
    return hidden, arguments


@torch.no_grad()
def final_hidden(layered: LayeredModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Return what the stock decoder makes of its last layer's output: [B, L, H], ready for the head."""
    decoder, layers, _ = decoder_layers(layered.model)
    for layer in layers:
        layer.forward = lambda *args, **kwargs: hidden
    try:
        return decoder(**batch, use_cache=False).last_hidden_state
    finally:
        for layer in layers:
            del layer.forward


def loaded_layers(layered: LayeredModel, first: int = 0) -> Iterator[tuple[int, nn.Module]]:
    """Yield (number, layer) from `first` on, each loaded while it is the loop's turn."""
    _, layers, prefix = decoder_layers(layered.model)
    for i in range(first, len(layers)):
        layered.load(lambda name, i=i: name.startswith(f"{prefix}{i}."))
        yield i, layers[i]
        layered.unload(layers[i])


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: Tensor, arguments: tuple[Any, Any]) -> Tensor:
    """Return the layer's output hidden states for one batch."""
    args, kwargs = arguments
    output = layer(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output
