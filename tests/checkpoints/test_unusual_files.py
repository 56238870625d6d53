"""Checkpoint files that other programs write and that some readers refuse: they are read as they are."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import make_tiny

import mergemoe
from mergemoe.checkpoints import validation
from mergemoe.checkpoints.model_folder import SINGLE
from mergemoe.models import layout

IDS = torch.randint(3, 4096, (2, 16), generator=torch.Generator().manual_seed(2))
METADATA = {
    "none": None,
    "without a format": {"by": "hand"},
    "longer than 100,000 bytes": {"format": "pt", "note": "x" * 120_000},
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_metadata_of_any_kind_is_read(metadata, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    expected = mergemoe.load(folder, "cpu")(IDS).logits
    save_file(load_file(folder / SINGLE), folder / SINGLE, metadata)
    validation.check_checkpoint(folder)
    layout.describe_layout(folder, digests=False)
    assert torch.equal(mergemoe.load(folder, "cpu")(IDS).logits, expected)
