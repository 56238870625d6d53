"""Packed checkpoints: what compressed-tensors makes of them is the checkpoint that was packed, bit for bit."""

import copy
import json
import sys

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import match_named_modules
from random_grids import random_grids
from random_groups import random_groups
from safetensors.torch import load_file

from mergemoe.checkpoints import model_folder
from mergemoe.compressed.assemble import assemble
from mergemoe.compressed.packed import packed_places, write_packed
from mergemoe.errors import UserError

OPTIONS = {"by": "gptq", "bits": 4, "group": 8}
PARTS = ("packed", "scale", "zero_point", "shape")


@pytest.fixture
def plain(described, tmp_path):
    """The function that writes a checkpoint with all experts on random grids; it returns the folder and the layers."""

    def make(bits):
        layers = {entry["layer"]: random_grids(described, entry, bits, 8) for entry in described["layers"]}
        assemble(described, layers, tmp_path / "plain")
        return tmp_path / "plain", layers

    return make


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_package_unpacks_every_matrix_bit_for_bit_and_the_rest_is_unchanged(plain, described, tmp_path, bits):
    folder, layers = plain(bits)
    options = {**OPTIONS, "bits": bits}
    places = packed_places(folder, described, options)
    assert len(places) == 2 * 8 * 3
    write_packed(folder, places, layers.__getitem__, options, tmp_path / "packed")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "packed"))
    config = model_folder.read_config(tmp_path / "packed")["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    for key, weight in before.items():
        if key not in places:
            assert torch.equal(after.pop(key), weight), key
            continue
        made = {f"weight_{part}": after.pop(f"{key}_{part}") for part in PARTS}
        scale = made["weight_scale"]
        assert made["weight_packed"].dtype == torch.int32 and scale.dtype == torch.float16
        rows, columns = weight.shape
        assert made["weight_packed"].nbytes == rows * -(-columns * bits // 32) * 4  # a row in whole int32
        assert scale.nbytes == rows * columns // 8 * 2
        assert made["weight_zero_point"].nbytes == -(-rows * bits // 32) * 4 * columns // 8
        exact = PackedQuantizationCompressor.decompress({**made, "weight_scale": scale.float()}, scheme)["weight"]
        assert torch.equal(exact.view(torch.int32), weight.view(torch.int32)), key
        half = PackedQuantizationCompressor.decompress(made, scheme)["weight"]
        assert torch.equal(half, weight.half()), key
    assert not after


def test_the_configuration_names_the_packed_modules_and_ignores_all_others(plain, described, tmp_path):
    folder, layers = plain(4)
    places = packed_places(folder, described, OPTIONS)
    write_packed(folder, places, layers.__getitem__, OPTIONS, tmp_path / "packed")
    config = model_folder.read_config(tmp_path / "packed")
    settings = config.pop("quantization_config")
    assert config == model_folder.read_config(folder)
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 8}
    (group,) = settings["config_groups"].values()
    assert group["weights"].items() >= weights.items()
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "pack-quantized")
    module = torch.nn.Module()
    headers = model_folder.read_headers(folder)
    for key in headers:  # the modules of a program that has one for each stored tensor
        at = module
        for name in key.split(".")[:-1]:
            at = at._modules.setdefault(name, torch.nn.Module())
    found = {name for name, _ in match_named_modules(module, group["targets"])}
    assert found == {key.removesuffix(".weight") for key in places}
    ignored = {name for name, _ in match_named_modules(module, settings["ignore"])}
    matrices = {key for key, header in headers.items() if len(header["shape"]) == 2}
    assert ignored == {key.removesuffix(".weight") for key in matrices - places.keys()}
    assert (tmp_path / "packed/tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (None, "this run is not quantized. Add a choice with `by: gptq`"),
        ({"by": "round", "format": "Q4_0"}, "this run is rounded to GGUF's Q4_0. Add a choice with `by: gptq`"),
        ({**OPTIONS, "bits": 2.5}, "a mean of 2.5 bits, another number in each matrix, .* Choose a whole number"),
    ],
)
def test_a_run_without_grids_is_refused(plain, described, options, said):
    with pytest.raises(UserError, match=said):
        packed_places(plain(4)[0], described, options)


def test_a_compact_checkpoint_is_refused(described, tmp_path):
    groups = {entry["layer"]: random_groups(described, entry) for entry in described["layers"]}
    assemble(described, groups, tmp_path / "compact")
    with pytest.raises(UserError, match="the checkpoint is compact: .* Pack a stock one"):
        packed_places(tmp_path / "compact", described, OPTIONS)


@pytest.mark.parametrize("change", [{"fused": True}, {"keys": ["model.layers.1.mlp.experts.down.0"]}])
def test_experts_that_are_not_stored_one_by_one_are_refused(plain, described, change):
    layout = copy.deepcopy(described)
    layout["layers"][1]["roles"]["down"] |= change
    with pytest.raises(UserError, match="layer 2 stores its down matrices as .* one matrix for each expert"):
        packed_places(plain(4)[0], layout, OPTIONS)


def test_without_the_package_it_is_named(plain, described, monkeypatch):
    folder = plain(4)[0]
    monkeypatch.setitem(sys.modules, "compressed_tensors.config", None)
    with pytest.raises(UserError, match=r'pip install "mergemoe\[packed\]"'):
        packed_places(folder, described, OPTIONS)


def test_weights_that_are_not_on_their_grids_are_refused(plain, described, tmp_path):
    folder, layers = plain(4)
    places = packed_places(folder, described, OPTIONS)
    layers[2]["up_scale"][3] *= 1.5
    with pytest.raises(UserError, match=r"layers.2.mlp.experts.3.up_proj.weight has other values than its grids"):
        write_packed(folder, places, layers.__getitem__, OPTIONS, tmp_path / "packed")


def test_loading_a_packed_folder_says_what_to_load_instead(plain, described, tmp_path):
    import mergemoe

    folder, layers = plain(4)
    write_packed(folder, packed_places(folder, described, OPTIONS), layers.__getitem__, OPTIONS, tmp_path / "packed")
    assert "quantization_config" in json.loads((tmp_path / "packed/config.json").read_text())
    with pytest.raises(UserError, match="packed with zeros .* without --packed"):
        mergemoe.load(tmp_path / "packed", "cpu")
