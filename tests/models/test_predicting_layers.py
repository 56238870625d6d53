"""Layers that predict further tokens may have other experts or another dtype: nothing of the model depends on them."""

import json

import architectures
import pytest
import torch
from by_stages import by_workflow, drawn
from predicting import tensors_of, with_predicting_layer
from safetensors.torch import save_file

import mergemoe
from mergemoe.checkpoints import expert_headers, validation
from mergemoe.checkpoints.model_folder import read_headers
from mergemoe.errors import UserError
from mergemoe.models import layout

NAMES = ("deepseek_v3", "glm4_moe")
FORMS = {  # experts of the model's own layers, of the predicting one, and the dtype of these
    "as many": (8, 8, None),
    "more": (4, 8, None),
    "fewer": (8, 4, None),
    "in 8 bits": (8, 8, torch.float8_e4m3fn),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_predicting_layer_of_another_form_is_accepted(name, form, tmp_path):
    folder = with_predicting_layer(name, tmp_path / "made", *FORMS[form])
    validation.check_checkpoint(folder)
    layers = {entry["layer"] for entry in layout.describe_layout(folder, digests=False)["layers"]}
    sizes = expert_headers.count_experts(folder)
    assert layers == sizes.keys() and set(sizes.values()) == {FORMS[form][0]}
    ids = torch.tensor([[3, 4, 5]])
    plain = architectures.save(name, tmp_path / "plain") if FORMS[form][0] == 8 else folder
    assert torch.isfinite(mergemoe.load(folder, "cpu", torch.float32)(ids).logits).all()
    assert set(expert_headers.predicting_layers(read_headers(plain), json.loads((plain / "config.json").read_text())))


@pytest.mark.parametrize("name", NAMES)
def test_what_reap_writes_can_be_inspected_and_compressed_again(name, tmp_path):
    folder = with_predicting_layer(name, tmp_path / "made")
    by_workflow(folder, drawn(), tmp_path, torch.float32, "reap")
    pruned = tmp_path / "workflow"
    validation.check_checkpoint(pruned)
    assert set(expert_headers.count_experts(pruned).values()) == {6}
    again = mergemoe.compress(mergemoe.load(pruned, "cpu"), drawn(), experts=4, method="average")
    assert torch.isfinite(again(drawn()["input_ids"]).logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_the_model_with_another_number_is_refused_all_the_same(name, tmp_path):
    folder = with_predicting_layer(name, tmp_path / "made")
    tensors = {k: t for k, t in tensors_of(folder).items() if "layers.2.mlp.experts.7." not in k}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="config.json states 8 experts, but layer 2 stores 7"):
        validation.check_checkpoint(folder)
