"""A head that config.json ties to the embedding, stored with other numbers, is refused and not tied in silence."""

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import make_tiny

import mergemoe
from mergemoe.checkpoints.model_folder import SINGLE
from mergemoe.errors import UserError
from mergemoe.models import layout
from mergemoe.models.layered_model import empty_model
from mergemoe.models.tied_weights import check_stored_ties

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
IDS = torch.randint(3, 4096, (8, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path):
    return make_tiny(tmp_path / "tied", tie_word_embeddings=True)


def stored(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


@pytest.mark.parametrize("part", [0.0, 1e-3])
def test_a_head_stored_beside_its_embedding_must_equal_it(folder, part):
    stored(folder, lambda t: t.update({HEAD: t[EMBEDDING] * (1 + part) + part}))
    layout.describe_layout(folder, digests=False)
    if part == 0:
        check_stored_ties(folder)
        assert torch.isfinite(mergemoe.load(folder, "cpu")(IDS).logits).all()
        return
    for check in check_stored_ties, mergemoe.load:
        with pytest.raises(
            UserError, match=f"^{folder}: .* tie.*but their numbers differ. Set `tie_word_embeddings: false`"
        ):
            check(folder)


def test_a_model_whose_head_was_trained_apart_is_not_compressed(folder):
    model = mergemoe.load(folder, "cpu")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(UserError, match="^the model: .*their numbers differ"):
        mergemoe.compress(model, IDS, experts=4, method="average")
    model.config.tie_word_embeddings = False
    before = model.lm_head.weight.clone()
    mergemoe.compress(model, IDS, experts=4, method="average")
    assert torch.equal(model.lm_head.weight, before)


def test_a_head_stored_alone_is_named(folder):
    stored(folder, lambda t: t.update({HEAD: t.pop(EMBEDDING)}))
    with pytest.raises(UserError, match=f"stores {HEAD} and no {EMBEDDING}.*Give the tensor the name {EMBEDDING}"):
        layout.describe_layout(folder, digests=False)


@pytest.mark.parametrize("name", ["cohere2_moe", "gemma4", "jetmoe", "zaya"])
def test_families_that_tie_are_accepted(name, tmp_path):
    folder = architectures.save(name, tmp_path / name)
    assert empty_model(folder).all_tied_weights_keys
    check_stored_ties(folder)
    mergemoe.load(folder, "cpu")
