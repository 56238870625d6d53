"""A plain copy of a quantized checkpoint, made by transformers' own dequantization, one decoder layer at a time.

A layer is loaded as `from_pretrained` with `dequantize=True` loads the whole model, and written in the form in which
transformers saves that family. Bit-equal to it (tests), except for blocks cut off at an edge: see `_CutBlocks`.
"""

import json
import shutil
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
from mergemoe.errors import UserError
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.stacks import layer_stacks
from mergemoe.progress import track


def dequantize_checkpoint(folder: str | Path, out: Path) -> None:
    """Write a plain checkpoint: a shard per decoder layer, one of all else, and every other file of the original.

    Args:
        folder: a checkpoint with a `quantization_config` whose method is one of quantization.METHODS.
        out: a new folder.

    Raises:
        UserError: where it is not quantized so, or tensors are missing or do not fit.
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
    _write_json(out / "config.json", {**quantization.unquantized_config(config), "dtype": plain_dtype(config)})
    for path in model_folder.checkpoint_files(folder):
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json") and path.name != "config.json":
            shutil.copyfile(path, out / path.name)


def plain_dtype(config: dict[str, Any]) -> str:
    """Return the dtype that a config.json names, where it is one of plain weights; else bfloat16."""
    text = config.get("text_config") or {}
    named = [settings.get(key) for settings in (config, text) for key in ("dtype", "torch_dtype")]
    return next((name for name in named if name in {"bfloat16", "float16", "float32"}), "bfloat16")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=2) + "\n")


class QuantizedModel(LayeredModel):
    """A quantized checkpoint whose parameters are dequantized as they are loaded, by name."""

    def __init__(self, folder: str | Path, dtype: torch.dtype):
        super().__init__(folder, dtype, torch.device("cpu"))
        stored = quantization.quantization_settings(model_folder.read_config(folder))
        self.quantizer: Any = AutoHfQuantizer.from_config({**(stored or {}), "dequantize": True}, pre_quantized=True)
        if isinstance(self.quantizer, FineGrainedFP8HfQuantizer):
            self.quantizer.get_load_operations = lambda: {"dequantize": _CutBlocks}
        self.parameter_of = self._parameters()

    def _mapping(self) -> list[Any]:
        """Return transformers' conversions of this model, fresh: they hold state."""
        return list(get_model_conversion_mapping(self.model, hf_quantizer=self.quantizer))

    def _parameters(self) -> dict[str, str]:
        """Return {stored key: parameter it becomes, or is a scale of}; say which keys have none."""
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
                f"{self.folder}: left out, as transformers has no parameter for them in {type(self.model).__name__}: "
                f"{len(left)} stored tensors, such as {left[0]}",
                file=sys.stderr,
            )
        return found

    def load(self, wanted: Callable[[str], bool]) -> None:
        """Fill the parameters whose name in the model is `wanted`, dequantized.

        Raises:
            UserError: where stored tensors are missing, do not fit together, or stay quantized.
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
        del self.model._weight_conversions  # reversed they quantize; without them _stored takes the plain family's
        missing = {name for name in info.missing_keys if wanted(name)}
        self.model.tie_weights(missing_keys=missing, recompute_mapping=False)
        self._check(info, missing, wanted)

    def _check(self, info: Any, missing: set[str], wanted: Callable[[str], bool]) -> None:
        for name, problem in sorted(info.conversion_errors.items()):
            reason = problem.partition("\nError")[0].splitlines()[-1]
            raise UserError(f"{self.folder}: {name} cannot be dequantized: {reason}")
        if info.mismatched_keys:
            name, shape, expected = min(info.mismatched_keys)
            raise UserError(f"{self.folder}: {name} is {list(shape)} once dequantized; by config.json {list(expected)}")
        if missing:
            raise UserError(f"{self.folder}: no stored tensor for {len(missing)} parameters, such as {min(missing)}")
        for name, tensor in self.model.state_dict().items():
            if wanted(name) and tensor.is_floating_point() and tensor.element_size() < 2:
                raise UserError(f"{self.folder}: {name} is {tensor.dtype} and its scales are missing")

    def parts(self) -> list[Callable[[str], bool]]:
        """Return what is loaded at a time: all that lies outside the layers, then each layer."""
        layers = tuple(f"{stack.prefix}{i}." for stack in layer_stacks(self.model) for i in range(len(stack.layers)))
        each = [lambda name, layer=layer: name.startswith(layer) for layer in layers]
        return [lambda name: not name.startswith(layers), *each]

    def write(self, wanted: Callable[[str], bool], path: Path) -> dict[str, int]:
        """Load parameters, write their tensors to a file, drop them; return {stored key: bytes}."""
        self.load(wanted)
        tensors = self._stored(wanted)
        save_file(tensors, path, metadata={"format": "pt"})
        sizes = {key: tensor.nbytes for key, tensor in tensors.items()}
        del tensors
        self.unload(self.model)
        return sizes

    def _stored(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return what is loaded under the keys, and in the form, that transformers saves it in."""
        ignored = set(self.model._keys_to_ignore_on_save or ())
        state = {name: t for name, t in self.model.state_dict().items() if wanted(name) and name not in ignored}
        state = remove_tied_weights_from_state_dict(state, self.model)
        return {key: tensor.contiguous() for key, tensor in revert_weight_conversion(self.model, state).items()}


class _CutBlocks(Fp8Dequantize):
    """Fp8Dequantize, right also where the block size does not divide a matrix (kv_a_proj_with_mqa of DeepSeek-V3).

    There the last blocks are cut off at the edge. Stock code divides the matrix evenly among its scales: it raises for
    576 rows with 5 scales, and takes 192 rows with 2 scales for blocks of 96, where they are 128 and 64.
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
