"""Write a quantized checkpoint as compressed-tensors stores it ("pack-quantized"): each expert's matrices in few bits.

    W = s (q - z),  q and z in 0 .. 2^b - 1;  stored: q - 2^(b-1) and z - 2^(b-1), as the format has signed integers

A matrix `<name>.weight` becomes `<name>.weight_packed`, b bits a weight in int32, and `<name>.weight_scale`,
`.weight_zero_point` and `.weight_shape`. The package compressed-tensors packs; all other tensors stay as they are.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.carried_files import carry_files
from mergemoe.checkpoints.expert_weights import StoredTensors
from mergemoe.checkpoints.shards import write_shards
from mergemoe.compressed import checkpoint_card
from mergemoe.errors import UserError
from mergemoe.moe.layout_types import LayerLayout, Layout
from mergemoe.progress import track
from mergemoe.quantization.quantize import ROLES

_MATRIX = re.compile(r"(?P<experts>.+\.experts)\.\d+\.(?P<name>\w+)\.weight")
_UNPACKED = "Or export it without --packed"
_BY = "Add a choice with `by: gptq` or `by: descent` to `quantize` in params.yaml, and a run with it"


class Place(NamedTuple):
    """Where the grids of one stored matrix are: row `row` of `<role>_scale` and `<role>_zero` of a layer."""

    layer: int
    role: str
    row: int


Grids = Callable[[int], Mapping[str, Tensor]]  # of a layer: its tensors, as quantization.quantize returns them


def packed_places(folder: Path, layout: Layout, options: Mapping[str, Any] | None) -> dict[str, Place]:
    """Return {stored key: place of its grids} of the matrices that are packed.

    Args:
        folder: the run's checkpoint.
        layout: of the original.
        options: of the run's quantization; None if it has none.

    Raises:
        UserError: if the format cannot have them, or the package is missing.
    """
    if options is None or options["by"] == "round":
        what = "not quantized" if options is None else f"rounded to GGUF's {options['format']}"
        raise UserError(f"only experts quantized by gptq or descent can be packed, and this run is {what}. {_BY}")
    if not float(options["bits"]).is_integer():
        raise UserError(
            f"this run has a mean of {options['bits']:g} bits, another number in each matrix, and packing takes one "
            f"number for all. Choose a whole number of `bits` in `quantize`. {_UNPACKED}"
        )
    if not checkpoint_card.is_stock(path.name for path in folder.iterdir()):
        raise UserError(
            "the checkpoint is compact: programs that read compressed-tensors do not know its expert_map. Pack a stock "
            f"one, of `reap`, of `slim`, or of a grouping that keeps all experts. {_UNPACKED}"
        )
    places = dict(place for entry in layout["layers"] for place in _places(entry))
    _scheme(options)
    headers = model_folder.read_headers(folder)  # of M experts; the layout has the keys of all N
    return {key: place for key, place in places.items() if key in headers and len(headers[key]["shape"]) == 2}


def _places(entry: LayerLayout) -> Iterator[tuple[str, Place]]:
    for role, facts in entry["roles"].items():
        if role not in ROLES:
            continue
        turned = facts["stored"]["transposed"] or facts["stored"]["flat"] or facts["stored"]["parts"] > 1
        if facts["fused"] or turned or not all(map(_MATRIX.fullmatch, facts["keys"])):
            raise UserError(
                f"layer {entry['layer']} stores its {role} matrices as {facts['keys'][0]}. compressed-tensors packs "
                f"one matrix for each expert, named like model.layers.0.mlp.experts.0.up_proj.weight. {_UNPACKED}"
            )
        yield from ((key, Place(entry["layer"], role, row)) for row, key in enumerate(facts["keys"]))


def write_packed(
    folder: Path, places: Mapping[str, Place], grids: Grids, options: Mapping[str, Any], out: Path
) -> None:
    """Write a packed copy of a checkpoint: weights, config.json, and the files that a checkpoint carries.

    Args:
        folder: the run's checkpoint.
        places: as packed_places returns them.
        grids: gives the tensors of a layer.
        options: of the run's quantization.
        out: a new folder.

    Raises:
        UserError: if a matrix of the checkpoint has other values than its grids.
    """
    out.mkdir(parents=True)
    with StoredTensors(folder) as stored:
        write_shards(track(_tensors(stored, places, grids, options), "export: tensors"), out, 4 << 30)
        others = [key for key, header in stored.headers.items() if key not in places and len(header["shape"]) == 2]
    config = model_folder.read_config(folder)
    config["quantization_config"] = _quantization_config(places, others, options)
    (out / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")
    carry_files(folder, out)


def _tensors(
    stored: StoredTensors, places: Mapping[str, Place], grids: Grids, options: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that stay, then those of one layer after the other, so that its grids are read once."""
    scheme = _scheme(options)
    yield from ((key, stored[key]) for key in stored.headers if key not in places)
    of_layer = {key: place.layer for key, place in places.items()}
    for layer, keys in itertools.groupby(sorted(places, key=of_layer.__getitem__), of_layer.__getitem__):
        tensors = grids(layer)
        for key in keys:
            scale, zero = (tensors[f"{places[key].role}_{part}"][places[key].row] for part in ("scale", "zero"))
            for part, made in _packed(key, stored[key], scale, zero, scheme).items():
                yield f"{key.removesuffix('.weight')}.{part}", made


def _packed(key: str, weight: Tensor, scale: Tensor, zero: Tensor, scheme: Any) -> dict[str, Tensor]:
    """Return the stored tensors of one matrix [R, C] with its scales and zeros [R, C / group]."""
    from compressed_tensors.compressors import PackedQuantizationCompressor

    signed = (zero.to(torch.int16) - 2 ** (scheme.weights.num_bits - 1)).to(torch.int8)
    # With a scale in 32 bits a value divided by it is a whole number, and a whole number times it is the value.
    whole = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": signed}
    made = PackedQuantizationCompressor.compress(whole, scheme)
    if not torch.equal(PackedQuantizationCompressor.decompress(made, scheme)["weight"], weight):
        raise UserError(f"{key} has other values than its grids. Run `snakemake` to the end, then export again")
    return {**made, "weight_scale": scale}


def _quantization_config(places: Mapping[str, Place], others: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    scheme, names = _scheme(options), dict[str, set[str]]()
    for found in filter(None, map(_MATRIX.fullmatch, places)):
        names.setdefault(found["experts"], set()).add(found["name"])
    scheme.targets = [
        rf"re:^{re.escape(experts)}\.\d+\.({'|'.join(sorted(names[experts]))})$" for experts in sorted(names)
    ]
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=scheme.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted(key.removesuffix(".weight") for key in others),
    )
    return config.model_dump(mode="json", exclude_none=True)


def _scheme(options: Mapping[str, Any]) -> Any:
    """Return the package's description of our grids, yet without the modules that have them."""
    try:
        from compressed_tensors.config import CompressionFormat
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationScheme,
            QuantizationStrategy,
            QuantizationType,
        )
    except ImportError:
        raise UserError('packing needs the package compressed-tensors: pip install "mergemoe[packed]"') from None

    weights = QuantizationArgs(
        num_bits=int(options["bits"]),
        type=QuantizationType.INT,
        symmetric=False,
        strategy=QuantizationStrategy.GROUP,
        group_size=options["group"],
    )
    return QuantizationScheme(targets=[], weights=weights, format=CompressionFormat.pack_quantized)
