"""Check a checkpoint before any long step, from JSON alone, so that every parse of the Snakefile can do it.

checkpoints/model_folder.py finds missing, damaged and mismatched files while it reads them. checkpoints/finite.py reads
the weights and finds NaN and infinity.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints import config_keys, expert_headers, model_folder, quantization, unmerged_parts
from mergemoe.checkpoints.json_object import read_object
from mergemoe.errors import UserError, shown

_FLOATS = {"BF16", "F16", "F32", "F64"}
_WEIGHTS = ("weight", "bias", "_proj", "sinks", "A_log")  # ends of keys; tables of tokens or experts are integers
_MISMATCH = (
    "config.json and the weights belong to different checkpoints, or shards are missing. Download the whole checkpoint "
    "again"
)


def check_checkpoint(folder: str | Path, dequantize: bool = False) -> None:
    """Check config.json and the headers of a checkpoint, each alone and against the other.

    Args:
        folder: a checkpoint folder.
        dequantize: whether the checkpoint is quantized and a plain copy will be made.

    Raises:
        UserError: the checkpoint cannot be used; the message gives the reason and the fix.
    """
    config = model_folder.read_config(folder)
    if not isinstance(config.get("model_type"), str):
        raise UserError(
            f"{folder}/config.json has no model_type, so the architecture is not known. It is not the configuration "
            "of a transformers checkpoint, or it is damaged. Use the config.json that belongs to the weights"
        )
    check_generation(folder)
    if "mergemoe" in config:
        raise UserError(
            f"{folder} is a compressed checkpoint. Only an original can be compressed. Name the original here; "
            "mergemoe.load reads this one"
        )
    try:
        quantization.check_quantization(config, dequantize)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    headers = model_folder.read_headers(folder)
    unmerged_parts.check_adapter(folder)
    unmerged_parts.check_names(folder, headers)
    found = expert_headers.mergeable_tensors(headers, config)
    _check_shapes(folder, headers, found)
    if not dequantize:
        check_stored_types(folder, headers, config)
        _check_dtypes(folder, headers, found)
    if not config.get("is_encoder_decoder"):
        _check_layers(folder, headers, config, found)
    _check_counts(folder, config, found)


def check_generation(folder: str | Path) -> None:
    """Check generation_config.json, if there is one: transformers takes its own defaults if it cannot read it.

    Raises:
        UserError: it is no JSON object, or names no tokens or numbers.
    """
    path = Path(folder, "generation_config.json")
    if not path.exists():
        return
    for key, value in read_object(path).items():
        each = value if isinstance(value, list) else [value]
        if key.endswith("_token_id") and not all(one is None or type(one) is int for one in each):
            raise UserError(
                f"{path}: {key} is {shown(value)}, but must be the number of a token, or a list of such. The file is "
                "damaged or was edited"
            )


def check_top_k(folder: str | Path, config: Mapping[str, Any], experts: int) -> None:
    """Check that a token can choose as many of a layer's experts as config.json says, if it says so.

    Raises:
        UserError: it says 0, or more than there are.
    """
    working = config_keys.config_top_k(config)
    if experts and working is not None and not 1 <= working <= experts:
        raise UserError(
            f"{folder}: config.json states that {working} experts work on a token, but a layer has {experts}. "
            f"{_MISMATCH}"
        )


def check_stored_types(folder: str | Path, headers: expert_headers.Headers, config: Mapping[str, Any]) -> None:
    """Check that no weight of a model that is not quantized is stored as integers, which transformers would cast.

    Raises:
        UserError: one is; the message gives its key and type.
    """
    if config.get("quantization_config"):
        return
    predicting = expert_headers.predicting_layers(headers, config)
    for key, stored in headers.items():
        if key.endswith(_WEIGHTS) and stored["dtype"] not in _FLOATS and not key.startswith(predicting):
            raise UserError(
                f"{folder}: {key} is stored as {stored['dtype']}, but config.json has no quantization_config for it. "
                f"Weights are stored as {', '.join(sorted(_FLOATS))}. Use the config.json that belongs to these "
                "weights, or the checkpoint that they were quantized from"
            )


def _check_shapes(
    folder: str | Path, headers: expert_headers.Headers, found: Mapping[str, expert_headers.RoutedTensor]
) -> None:
    for key, held in found.items():
        shape = headers[key]["shape"]
        if math.prod(shape) == 0 or held.experts == 0:
            raise UserError(f"{folder}: {key} has the shape {shape}, so an expert is empty. {_MISMATCH}")
        if held.name.endswith(("down_proj.weight", "down_proj")) and len(shape) < 2:
            raise UserError(f"{folder}: {key} has the shape {shape}, which is no matrix. {_MISMATCH}")


def _check_dtypes(
    folder: str | Path, headers: expert_headers.Headers, found: Mapping[str, expert_headers.RoutedTensor]
) -> None:
    layers: dict[int, dict[str, str]] = defaultdict(dict)  # {layer: {dtype: a key}}
    for key, held in found.items():
        layers[held.layer].setdefault(headers[key]["dtype"], key)
    for layer, dtypes in sorted(layers.items()):
        if foreign := sorted(dtypes.keys() - _FLOATS):
            raise UserError(
                f"{folder}: {dtypes[foreign[0]]} is stored as {foreign[0]}, but config.json has no "
                "quantization_config for it. Experts can be merged if they are stored as "
                f"{', '.join(sorted(_FLOATS))}. Use the config.json that belongs to these weights, or the checkpoint "
                "that they were quantized from"
            )
        if len(dtypes) > 1:
            both = " and ".join(f"{dtype} ({key})" for dtype, key in sorted(dtypes.items()))
            raise UserError(
                f"{folder}: the experts of layer {layer} are stored as {both}. The shards belong to different "
                "checkpoints, or a conversion stopped midway. Load and save the checkpoint in one dtype"
            )


def _check_layers(
    folder: str | Path,
    headers: expert_headers.Headers,
    config: Mapping[str, Any],
    found: Mapping[str, expert_headers.RoutedTensor],
) -> None:
    """Compare the number of layers in config.json with the stored layers of all kinds."""
    said = config_keys.config_values(config, "layers")
    if not said or not found:
        return
    stack = re.escape(next(iter(found.values())).stack)
    stored = 1 + max(int(match[1]) for key in headers if (match := re.match(rf"{stack}\.(\d+)\.", key)))
    spare = max(config_keys.config_values(config, "predicting_layers"), default=0)
    if not any(number <= stored <= number + spare for number in said):
        raise UserError(f"{folder}: config.json states {said[0]} layers, but the tensors have {stored}. {_MISMATCH}")


def _check_counts(
    folder: str | Path, config: Mapping[str, Any], found: Mapping[str, expert_headers.RoutedTensor]
) -> None:
    said = config_keys.config_values(config, "experts")
    check_top_k(folder, config, min((held.experts for held in found.values()), default=0))
    for key, held in found.items():
        if said and held.experts not in said:
            raise UserError(
                f"{folder}: config.json states {said[0]} experts, but layer {held.layer} stores {held.experts} "
                f"({key}). {_MISMATCH}"
            )
