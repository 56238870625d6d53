"""Load and free a model's weights layer by layer, so that only one layer of them is in memory.

Tensors are loaded with transformers' own converters, so stored experts of any form get the shape that the modules
expect. models/layerwise_forward.py runs the layers.

The converters are internal functions of transformers. Its version is pinned, and a test compares the results.
"""

import ctypes
import gc
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    convert_and_load_state_dict_in_model,
    dot_natural_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from mergemoe.checkpoints import model_folder
from mergemoe.errors import UserError, in_short
from mergemoe.models.families import model_class
from mergemoe.models.kernels import check_kernels
from mergemoe.models.stored_keys import STACKED, stored_keys


def empty_model(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model with parameters on the meta device; buffers are real, because no file holds rotary tables.

    Raises:
        UserError: transformers has no class for the model, or does not accept config.json.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        cls = model_class(config)
        check_kernels(cls, model_folder.read_config(folder), folder)
        model = empty_of(cls, config, dtype)
    except UserError:
        raise
    except Exception as error:  # each key of config.json can raise an exception of its own kind
        raise UserError(
            f"{folder}/config.json: transformers cannot build the model from it ({in_short(error)}). The file is "
            "damaged or was edited. Download it again"
        ) from error
    return model.eval()


def empty_of(cls: Any, config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a model of a class and a configuration with parameters on the meta device; any exception passes."""
    with init_empty_weights(include_buffers=False):
        return cls._from_config(
            config, dtype=dtype or config.dtype, attn_implementation=None, experts_implementation="eager"
        )


class LayeredModel:
    """A checkpoint whose parameters are loaded and freed by name."""

    def __init__(self, folder: str | Path, dtype: torch.dtype, device: torch.device):
        self.folder, self.dtype, self.device = Path(folder), dtype, device
        self.model = empty_model(folder, dtype)
        for name, buffer in self.model.named_buffers():
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[leaf] = buffer.to(device)
        self.headers = model_folder.read_headers(folder)
        self.sources = stored_keys(self.model, self.headers)

    def load(self, wanted: Callable[[str], bool]) -> None:
        """Load the parameters whose name in the model is `wanted`.

        Raises:
            RuntimeError: a stored tensor does not fit its parameter.
        """
        own = {name for name, _ in self.model.named_parameters()}
        keys = [key for key, source in self.sources.items() if wanted(source.parameter)]
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(self.folder / file, "pt"))
                for file in sorted({self.headers[key]["file"] for key in keys})
            }
            slices = {key: files[self.headers[key]["file"]].get_slice(key) for key in keys}
            stacked: dict[str, dict[str, Any]] = {}
            for key in keys:
                source = self.sources[key]
                if source.parameter in own and source.operations in STACKED:
                    stacked.setdefault(source.parameter, {})[key] = slices.pop(key)
            for name, of_experts in stacked.items():
                self._stack(name, of_experts)
            settings = LoadStateDictConfig(
                dtype=self.dtype,
                dtype_plan=self.model._get_dtype_plan(self.dtype),
                weight_mapping=list(get_model_conversion_mapping(self.model)),  # type: ignore[arg-type]  # fresh: it holds state
                device_map={"": self.device},
            )
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, settings, None)
        if info.mismatched_keys or info.conversion_errors:
            raise RuntimeError(f"{self.folder}: {info}")

    def _stack(self, name: str, slices: Mapping[str, Any]) -> None:
        """Fill a parameter [E, rows, ...] from tensors stored per expert and matrix, one at a time.

        The result is that of transformers' MergeModulelist and Concatenate, which need twice the memory meanwhile.
        """
        owner, _, leaf = name.rpartition(".")
        parameters: Any = self.model.get_submodule(owner)._parameters
        whole = torch.empty_like(parameters[leaf], device=self.device, requires_grad=False)
        stored = sum(math.prod(self.headers[key]["shape"]) for key in slices)
        if stored != whole.numel():
            raise RuntimeError(f"{self.folder}: {stored} numbers are stored for {name}, whose shape is {whole.shape}")
        parts: dict[int, list[str]] = {}
        for key in sorted(slices, key=dot_natural_key):
            parts.setdefault(self.sources[key].part, []).append(key)
        first = 0
        for _, keys in sorted(parts.items()):
            rows = self.headers[keys[0]]["shape"][0]
            for expert, key in enumerate(keys):
                whole[expert, first : first + rows].copy_(slices[key][...])
            first += rows
        parameters[leaf] = nn.Parameter(whole, requires_grad=False)

    def unload(self, module: nn.Module) -> None:
        """Move a module's parameters to the meta device and give their memory back to the system."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    empty = torch.empty_like(parameter, device="meta")
                    part._parameters[name] = nn.Parameter(empty, requires_grad=False)
        gc.collect()
        try:  # without this the peak is about twice as high; it works with glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


class ResidentModel:
    """A model that is already in memory, with the interface of LayeredModel."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.device = model, model.device

    def load(self, wanted: Callable[[str], bool]) -> None:
        """Do nothing."""

    def unload(self, module: nn.Module) -> None:
        """Do nothing."""
