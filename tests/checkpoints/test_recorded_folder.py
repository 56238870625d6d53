"""A checkpoint folder is opened only if it holds the recorded files, and no others that change the model."""

import shutil

import chance
import pytest
from transformers import AutoModelForCausalLM

from mergemoe.checkpoints import model_folder, recorded_folder
from mergemoe.checkpoints.expert_weights import read_experts, read_router
from mergemoe.errors import ArtifactError
from mergemoe.models import layout


@pytest.fixture
def original(tiny, described, tmp_path):
    """A copy of the tiny checkpoint, and its layout."""
    folder = shutil.copytree(tiny, tmp_path / "copy")
    return folder, {**described, "path": str(folder)}


def spoil(path):
    whole = path.read_bytes()
    chance.write_unseen(path, whole[:-1] + bytes([whole[-1] ^ 1]))


def test_the_recorded_files_are_opened(original):
    folder, made = original
    assert recorded_folder.open_original(made) == folder
    assert len(read_experts(made, 1)) == 8


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "spiece.model"])
def test_a_file_that_was_added_is_refused(name, original):
    folder, made = original
    (folder / name).write_text("{}")
    with pytest.raises(ArtifactError, match=f"{name} was added after the job `layout`"):
        recorded_folder.open_original(made, weights=False)


def test_further_chat_templates_are_files_of_the_model(original):
    folder, _ = original
    path = folder / model_folder.TEMPLATES / "rag.jinja"
    path.parent.mkdir()
    path.write_text("{{ messages }}")
    made = layout.describe_layout(folder)
    assert f"{model_folder.TEMPLATES}/rag.jinja" in made["files"]
    recorded_folder.open_original(made, weights=False)
    path.write_text("{{ messages[0] }}")
    with pytest.raises(ArtifactError, match="rag.jinja is not the file that was recorded"):
        recorded_folder.open_original(made, weights=False)
    path.write_text("{{ messages }}")
    (path.parent / "tool_use.jinja").write_text("{{ tools }}")
    with pytest.raises(ArtifactError, match="tool_use.jinja was added"):
        recorded_folder.open_original(made, weights=False)


def test_weights_are_compared_where_they_are_read(original):
    folder, made = original
    spoil(folder / "model.safetensors")
    recorded_folder.open_original(made, weights=False)
    for read in (recorded_folder.open_original, lambda one: read_experts(one, 1), lambda one: read_router(one, 1)):
        with pytest.raises(ArtifactError, match="model.safetensors is not the file that was recorded"):
            read(made)


def test_of_a_sharded_checkpoint_a_layer_needs_its_own_shards(tiny, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny, dtype="auto").save_pretrained(tmp_path, max_shard_size="20KB")
    made = layout.describe_layout(tmp_path)
    of_layer = {key for facts in made["layers"][1]["roles"].values() for key in facts["keys"]}
    held = {header["file"] for key, header in model_folder.read_headers(tmp_path).items() if key in of_layer}
    others = sorted({path.name for path in tmp_path.glob("*.safetensors")} - held)
    assert others
    for name in others:
        spoil(tmp_path / name)
    read_experts(made, 2)
    spoil(tmp_path / sorted(held)[0])
    with pytest.raises(ArtifactError, match="is not the file that was recorded"):
        read_experts(made, 2)
