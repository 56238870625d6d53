"""What save writes can be loaded: a model that was changed by hand is refused, and no folder is left."""

import architectures
import pytest
import torch
from by_stages import drawn
from torch import nn

import mergemoe
from mergemoe.errors import UserError

pytestmark = pytest.mark.usefixtures("own_module_cache")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return architectures.save("qwen3_moe", tmp_path_factory.mktemp("full") / "model")


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def cut(model):
    model.model.layers = model.model.layers[:1]


def narrowed(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[:-3].detach().clone())


def with_buffer(model):
    model.model.layers[0].self_attn.q_proj.register_buffer("scale_of_int8", torch.ones(3, dtype=torch.int8))


def with_adapter(model):
    layer = model.model.layers[0].self_attn
    layer.q_proj.lora_A = nn.Linear(layer.q_proj.in_features, 2, bias=False)


CHANGES = [tied, cut, narrowed, with_buffer, with_adapter]


@pytest.mark.parametrize("compress", [True, False], ids=["compact", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_could_not_be_loaded_is_not_saved(change, compress, full, tmp_path):
    model = mergemoe.load(full, "cpu")
    if compress:
        model = mergemoe.compress(model, drawn(), experts=4, method="average")
    change(model)
    with pytest.raises(UserError, match="the model does not fit its own configuration, so nothing was saved") as caught:
        mergemoe.save(model, tmp_path / "saved")
    assert "what was written" in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_change_that_the_configuration_knows_is_saved(full, tmp_path):
    model = mergemoe.load(full, "cpu")
    cut(model)
    model.config.num_hidden_layers = 1
    mergemoe.save(model, tmp_path / "saved")
    assert len(mergemoe.load(tmp_path / "saved", "cpu").model.layers) == 1
