"""A kernel that the model's class does not have is refused with the key, before anything is loaded or computed."""

import json

import architectures
import pytest

import mergemoe
from mergemoe.errors import UserError
from mergemoe.models.layout import describe_layout

LACKING = [
    ("gpt_oss", "_attn_implementation", "sdpa"),
    ("gpt_oss", "attn_implementation", "sdpa"),
    ("llama4_text", "_experts_implementation", "grouped_mm"),
    ("llama4_text", "experts_implementation", "grouped_mm"),
]


def asking(folder, name, key, value):
    architectures.save(name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    return folder


@pytest.mark.parametrize(("name", "key", "value"), LACKING)
@pytest.mark.parametrize("reader", [describe_layout, lambda folder: mergemoe.load(folder, "cpu")])
def test_a_kernel_that_the_class_lacks_is_refused_with_its_key(reader, name, key, value, tmp_path):
    folder = asking(tmp_path / name, name, key, value)
    with pytest.raises(UserError, match=rf"config.json: {key} is '{value}', which .*ForCausalLM does not have.*Delete"):
        reader(folder)


@pytest.mark.parametrize("name", ["gpt_oss", "llama4_text", "qwen3_moe"])
@pytest.mark.parametrize("key", ["_attn_implementation", "experts_implementation"])
def test_kernels_that_every_class_has_are_right(name, key, tmp_path):
    folder = asking(tmp_path / name, name, key, "eager")
    describe_layout(folder)
    mergemoe.load(folder, "cpu")
