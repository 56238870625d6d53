"""config.json keeps the keys of the original's, which older readers look for."""

import json

import architectures
import pytest
import torch

import mergemoe

OLD = {"num_local_experts": "num_experts", "dtype": "torch_dtype"}
WAYS = {
    "reap": {"method": "reap"},
    "slim": {"method": "slim", "width": 0.5},
    "compact": {"method": "average"},
}


@pytest.fixture
def original(tmp_path):
    """A checkpoint whose config.json is as transformers 4 wrote it."""
    folder = architectures.save("qwen3_moe", tmp_path / "full")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    old = {OLD.get(key, key): value for key, value in config.items()} | {"rope_theta": rope["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(old))
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_saved_model_keeps_the_old_keys_with_new_values(original, tmp_path, way):
    model = mergemoe.compress(mergemoe.load(original, "cpu"), torch.randint(3, 97, (8, 16)), **WAYS[way])
    mergemoe.save(model, tmp_path / "saved")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (original, tmp_path / "saved"))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert (
        changed
        == {
            "reap": {"num_experts"},
            "slim": {"moe_intermediate_size"},
            "compact": {"architectures", "auto_map", "mergemoe"},
        }[way]
    )
    again = mergemoe.load(tmp_path / "saved", "cpu")
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_another_dtype_and_another_setting_are_written_under_the_old_key(original, tmp_path):
    model = mergemoe.load(original, "cpu", torch.bfloat16)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    mergemoe.save(model, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["torch_dtype"] == "bfloat16" and "dtype" not in saved
    assert type(model.config).from_dict(saved).rope_parameters["rope_theta"] == 5.0


def test_a_model_from_nowhere_is_written_as_transformers_does(original, tmp_path):
    model = mergemoe.load(original, "cpu")
    model.name_or_path = str(tmp_path / "nothing")
    with pytest.warns(UserWarning, match="has no tokenizer"):
        mergemoe.save(model, tmp_path / "saved")
    assert "num_experts" not in json.loads((tmp_path / "saved/config.json").read_text())
