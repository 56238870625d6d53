"""What makes a checkpoint unusable, told before any long step: from JSON alone, so at every parse of the Snakefile.

Files that are missing, damaged or do not fit together are found by model_folder.py while it reads them; weights that
are no numbers by checkpoints/finite.py, which must read them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.checkpoints import expert_headers, model_folder, quantization
from mergemoe.errors import UserError

_FLOATS = {"BF16", "F16", "F32", "F64"}


def check_checkpoint(folder: str | Path, dequantize: bool = False) -> None:
    """Check what config.json and the headers say, each by itself and together.

    Args:
        folder: a checkpoint.
        dequantize: whether it is quantized and a plain copy will be made.

    Raises:
        UserError: with what was found and the way out.
    """
    config = model_folder.read_config(folder)
    if not isinstance(config.get("model_type"), str):
        raise UserError(
            f"{folder}/config.json names no model_type, so no architecture: it is not the configuration of a "
            "transformers checkpoint, or was damaged"
        )
    if "mergemoe" in config:
        raise UserError(
            f"{folder} is compressed already: name the original checkpoint here; mergemoe.load reads this one"
        )
    try:
        quantization.check_quantization(config, dequantize)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    headers = model_folder.read_headers(folder)
    found = expert_headers.mergeable_tensors(headers, config)
    if not dequantize:
        _check_dtypes(folder, headers, found)
    if not config.get("is_encoder_decoder"):
        _check_layers(folder, headers, config, found)
    _check_counts(folder, config, found)


def _check_dtypes(
    folder: str | Path, headers: expert_headers.Headers, found: Mapping[str, expert_headers.RoutedTensor]
) -> None:
    layers: dict[int, dict[str, str]] = defaultdict(dict)  # {layer: {dtype: a key}}
    for key, held in found.items():
        layers[held.layer].setdefault(headers[key]["dtype"], key)
    for layer, dtypes in sorted(layers.items()):
        if foreign := sorted(dtypes.keys() - _FLOATS):
            raise UserError(
                f"{folder}: {dtypes[foreign[0]]} is stored as {foreign[0]}, and config.json has no quantization_config "
                f"that says what its numbers mean; experts can be merged as {', '.join(sorted(_FLOATS))}. Bring the "
                "config.json that belongs to these weights, or the checkpoint that they were quantized from"
            )
        if len(dtypes) > 1:
            both = " and ".join(f"{dtype} ({key})" for dtype, key in sorted(dtypes.items()))
            raise UserError(
                f"{folder}: the experts of layer {layer} are stored as {both}: shards of different checkpoints, or a "
                "conversion that stopped midway. Load and save the checkpoint in one dtype"
            )


def _check_layers(
    folder: str | Path,
    headers: expert_headers.Headers,
    config: Mapping[str, Any],
    found: Mapping[str, expert_headers.RoutedTensor],
) -> None:
    """Compare the number of layers in config.json with the layers, of any kind, beside those with experts."""
    said = expert_headers.config_values(config, "layers")
    if not said or not found:
        return
    stack = re.escape(next(iter(found.values())).stack)
    stored = 1 + max(int(match[1]) for key in headers if (match := re.match(rf"{stack}\.(\d+)\.", key)))
    spare = max(expert_headers.config_values(config, "predicting_layers"), default=0)
    if not any(number <= stored <= number + spare for number in said):
        raise UserError(
            f"{folder}: config.json says {said[0]} layers, the tensors are of {stored}: configuration and weights are "
            "of different checkpoints, or shards are missing"
        )


def _check_counts(
    folder: str | Path, config: Mapping[str, Any], found: Mapping[str, expert_headers.RoutedTensor]
) -> None:
    said, working = expert_headers.config_values(config, "experts"), expert_headers.config_top_k(config)
    fewest = min((held.experts for held in found.values()), default=0)
    if working and 0 < fewest < working:
        raise UserError(
            f"{folder}: config.json says that {working} experts work on a token, and a layer has {fewest}: "
            "configuration and weights are of different checkpoints"
        )
    for key, held in found.items():
        if said and held.experts not in said:
            raise UserError(
                f"{folder}: config.json says {said[0]} experts, layer {held.layer} stores {held.experts} ({key}): "
                "configuration and weights are of different checkpoints, or shards are missing"
            )
