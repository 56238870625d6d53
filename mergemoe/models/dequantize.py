"""Dequantize a checkpoint with transformers' own code, one decoder layer at a time.

Each layer is loaded as `from_pretrained(..., dequantize=True)` loads the whole model, and written in the form that
transformers saves for the family. The tests compare the bits; only blocks cut off at an edge differ (`_CutBlocks`).
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.modeling_utils import LoadStateDictConfig, remove_tied_weights_from_state_dict
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from mergemoe.checkpoints import model_folder, quantization
from mergemoe.checkpoints.carried_files import copy_others, without_code
from mergemoe.errors import UserError
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.stacks import layer_stacks
from mergemoe.progress import track

_AGAIN = "Index, config.json and shards may belong to different checkpoints. Download the whole checkpoint again"


def dequantize_checkpoint(folder: str | Path, out: Path) -> None:
    """Write a plain checkpoint: a shard per decoder layer, one for the other tensors, and copies of all other files.

    Args:
        folder: a checkpoint with a `quantization_config` whose method is one of quantization.METHODS.
        out: a new folder.

    Raises:
        UserError: the checkpoint is not quantized by such a method, or tensors are missing or have wrong shapes.
    """
    config = model_folder.read_config(folder)
    quantization.check_quantization(config, dequantize=True)
    layered = QuantizedModel(folder, getattr(torch, plain_dtype(config)))
    out.mkdir(parents=True)
    parts = layered.parts()
    sizes: dict[str, int] = {}
    stored_in: dict[str, str] = {}
    for i, wanted in enumerate(track(parts, "dequantize: shards"), 1):
        name = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        written = layered.write(wanted, out / name)
        sizes |= written
        stored_in |= dict.fromkeys(written, name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": stored_in}
    _write_json(out / "model.safetensors.index.json", index)
    _write_json(
        out / "config.json", {**without_code(quantization.unquantized_config(config)), "dtype": plain_dtype(config)}
    )
    copy_others(Path(folder), out)


def plain_dtype(config: dict[str, Any]) -> str:
    """Return the dtype in config.json if plain weights can have it, else bfloat16."""
    text = config.get("text_config") or {}
    named = [settings.get(key) for settings in (config, text) for key in ("dtype", "torch_dtype")]
    return next((name for name in named if name in {"bfloat16", "float16", "float32"}), "bfloat16")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=2) + "\n", encoding="utf-8")


class QuantizedModel(LayeredModel):
    """A quantized checkpoint: parameters are loaded by name and dequantized on the way."""

    def __init__(self, folder: str | Path, dtype: torch.dtype):
        super().__init__(folder, dtype, torch.device("cpu"))
        stored = quantization.quantization_settings(model_folder.read_config(folder))
        self.quantizer: Any = AutoHfQuantizer.from_config({**(stored or {}), "dequantize": True}, pre_quantized=True)
        if isinstance(self.quantizer, FineGrainedFP8HfQuantizer):
            self.quantizer.get_load_operations = lambda: {"dequantize": _CutBlocks}
        self.parameter_of = self._parameters()

    def _mapping(self) -> list[Any]:
        """Return transformers' conversions of this model; new ones at each call, because they hold state."""
        return list(get_model_conversion_mapping(self.model, hf_quantizer=self.quantizer))

    def _parameters(self) -> dict[str, str]:
        """Return {stored key: its parameter}; a scale has the parameter that it scales. Print the keys without one."""
        own, mapping = self.model.state_dict(), self._mapping()
        renamings = [t for t in mapping if isinstance(t, WeightRenaming)]
        converters = [t for t in mapping if isinstance(t, WeightConverter)]
        found = {}
        for key in self.headers:
            name = rename_source_key(key, renamings, converters, self.model.base_model_prefix, own)[0]
            if name in own or key in own:
                found[key] = name if name in own else key
        if left := sorted(self.headers.keys() - found.keys()):
            print(
                f"{self.folder}: {len(left)} stored tensors are left out, such as {left[0]}: "
                f"{type(self.model).__name__} has no parameter for them",
                file=sys.stderr,
            )
        return found

    def load(self, wanted: Callable[[str], bool]) -> None:
        """Load and dequantize the parameters whose name in the model is `wanted`.

        Raises:
            UserError: stored tensors are missing, have wrong shapes, or stay quantized.
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
                weight_mapping=self._mapping(),
                device_map={"": self.device},
                hf_quantizer=self.quantizer,
            )
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, settings, None)
        # Reversed, these conversions would quantize. Without them `_stored` uses those of the plain family.
        del self.model._weight_conversions
        missing = {name for name in info.missing_keys if wanted(name)}
        self.model.tie_weights(missing_keys=missing, recompute_mapping=False)
        self._check(info, missing, wanted)

    def _check(self, info: Any, missing: set[str], wanted: Callable[[str], bool]) -> None:
        for name, problem in sorted(info.conversion_errors.items()):
            reason = problem.partition("\nError")[0].splitlines()[-1]
            raise UserError(f"{self.folder}: {name} cannot be dequantized ({reason}). {_AGAIN}")
        if info.mismatched_keys:
            name, shape, expected = min(info.mismatched_keys)
            raise UserError(
                f"{self.folder}: {name} has the shape {list(shape)} after dequantization, but config.json gives "
                f"{list(expected)}. {_AGAIN}"
            )
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} parameters have no stored tensor, such as {min(missing)}. {_AGAIN}"
            )
        for name, tensor in self.model.state_dict().items():
            if wanted(name) and tensor.is_floating_point() and tensor.element_size() < 2:
                raise UserError(f"{self.folder}: {name} is {tensor.dtype}, and its scales are missing. {_AGAIN}")

    def parts(self) -> list[Callable[[str], bool]]:
        """Return the parts that are loaded one at a time: all parameters outside the layers, then each layer.

        A part is a function that takes a parameter's name and returns whether the parameter belongs to it.
        """
        layers = tuple(f"{stack.prefix}{i}." for stack in layer_stacks(self.model) for i in range(len(stack.layers)))
        each = [lambda name, layer=layer: name.startswith(layer) for layer in layers]
        return [lambda name: not name.startswith(layers), *each]

    def write(self, wanted: Callable[[str], bool], path: Path) -> dict[str, int]:
        """Load the wanted parameters, write them to a file and free them; return {stored key: bytes}."""
        self.load(wanted)
        tensors = self._stored(wanted)
        save_file(tensors, path, metadata={"format": "pt"})
        sizes = {key: tensor.nbytes for key, tensor in tensors.items()}
        del tensors
        self.unload(self.model)
        return sizes

    def _stored(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the loaded tensors with the keys and in the form that transformers saves."""
        ignored = set(self.model._keys_to_ignore_on_save or ())
        state = {name: t for name, t in self.model.state_dict().items() if wanted(name) and name not in ignored}
        state = remove_tied_weights_from_state_dict(state, self.model)
        return {key: tensor.contiguous() for key, tensor in revert_weight_conversion(self.model, state).items()}


class _CutBlocks(Fp8Dequantize):
    """Fp8Dequantize for matrices whose size is no multiple of the block size (kv_a_proj_with_mqa of DeepSeek-V3).

    The last blocks of such a matrix are cut off at the edge. Stock code divides the matrix evenly among its scales: it
    raises for 576 rows with 5 scales, and reads 192 rows with 2 scales as blocks of 96 instead of 128 and 64.
    """

    def _dequantize_one(self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block is None or scales.ndim < 2 or quantized.element_size() != 1 or not quantized.is_floating_point():
            return super()._dequantize_one(quantized, scales, output_dtype)
        rows, columns = quantized.shape[-2:]
        below, beside = -rows % block[0], -columns % block[1]
        if list(scales.shape[-2:]) != [(rows + below) // block[0], (columns + beside) // block[1]]:
            return super()._dequantize_one(quantized, scales, output_dtype)
        whole = torch.nn.functional.pad(quantized.to(torch.float32), (0, beside, 0, below))
        return super()._dequantize_one(whole, scales, output_dtype)[..., :rows, :columns].contiguous()
