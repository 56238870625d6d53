"""Hostile checkpoints: whatever config.json, an index or a header says, the answer is right or one clear error."""

import json

import architectures
import pytest
from first_look import look
from safetensors.torch import load_file, save_file

from mergemoe.checkpoints import json_object, model_folder
from mergemoe.errors import UserError

KEY = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = architectures.save("qwen3_moe", tmp_path_factory.mktemp("whole") / "full")
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / model_folder.INDEX).unlink(missing_ok=True)
    save_file(tensors, folder / model_folder.SINGLE, metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_header(folder, change):
    path = folder / model_folder.SINGLE
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + length])
    text = change(text)
    text = (text if isinstance(text, str) else json.dumps(text)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def with_entry(**changes):
    return lambda header: {**header, KEY: header[KEY] | changes}


def twice(header):
    text = json.dumps(header)
    return f'{text[:-1]}, "{KEY}": {json.dumps(header[KEY])}}}'


def renamed(name):
    return lambda header: {name if key == KEY else key: entry for key, entry in header.items()}


HEADERS = {
    "overlap": (with_entry(data_offsets=[0, 3072]), "gap or an overlap"),
    "negative": (with_entry(data_offsets=[-8, 3064]), "the offsets"),
    "reversed": (with_entry(data_offsets=[3072, 0]), "takes"),
    "one offset": (with_entry(data_offsets=[3]), "does not begin with a safetensors header"),
    "three offsets": (with_entry(data_offsets=[0, 1, 2]), "does not begin with a safetensors header"),
    "no shape": (with_entry(shape=None), "does not begin with a safetensors header"),
    "text for a shape": (with_entry(shape="32"), "the shape 32"),
    "an endless shape": (with_entry(shape=[1] * 65), "the shape"),
    "an enormous shape": (with_entry(shape=[1 << 64]), "the shape"),
    "a list for a dtype": (with_entry(dtype=["F32"]), "does not begin with a safetensors header"),
    "another dtype": (with_entry(dtype="F16"), "takes"),
    "a key twice": (twice, "is there twice"),
    "a long name": (renamed("a" * 1001), "by 1,001 letters"),
    "half a letter": (renamed("\ud83d"), "does not begin with a safetensors header .*surrogates not allowed"),
    "a key of no entry": (with_entry(more=[[float("nan")]]), f"{KEY} has a key more"),
    "a space before it": (lambda header: " " + json.dumps(header), "it begins with a space"),
    "a deep header": (lambda header: "[" * 100_000, "does not begin with a safetensors header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_contradicts_its_file_is_refused(name, folder):
    change, words = HEADERS[name]
    change_header(folder, change)
    with pytest.raises(UserError, match=f"model.safetensors .*{words}") as error:
        look(folder)
    assert len(str(error.value)) < 1500


def test_a_spoilt_letter_does_not_print_the_whole_header(folder):
    path = folder / model_folder.SINGLE
    content = bytearray(path.read_bytes())
    content[50] = 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="UnicodeDecodeError") as error:
        look(folder)
    assert len(str(error.value)) < 1000


def test_headers_that_no_model_has_are_refused_before_they_are_parsed(folder, monkeypatch):
    monkeypatch.setattr(model_folder, "LONGEST", 5000)
    with pytest.raises(UserError, match="the headers of its 1 shards have .* at most 5,000 are read"):
        model_folder.read_headers(folder)
    monkeypatch.setattr(json_object, "LONGEST", 100)
    with pytest.raises(UserError, match="config.json has .* bytes; at most 100 are read"):
        model_folder.read_config(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pickled weights. A pickle can run any code"),
        ("x.pt", "pickled weights"),
        ("../model.safetensors", "is not the name"),
        ("/proc/self/mem", "is not the name"),
        ("/dev/zero", "is not the name"),
        ("/etc/x.safetensors", "is not the name"),
        ("sub/x.safetensors", "is not the name"),
        ("", "is not the name"),
        ("..", "is not the name"),
        ("a" * 5000 + ".safetensors", "is not the name"),
        ("\ud83d.safetensors", "missing"),
        ("x\0.safetensors", "missing"),
    ],
)
def test_an_index_names_safetensors_files_of_its_own_folder_alone(name, words, folder):
    keys = model_folder.read_headers(folder)
    (folder / model_folder.SINGLE).rename(folder / "model-1.safetensors")
    stored_in = dict.fromkeys(keys, "model-1.safetensors") | {KEY: name}
    (folder / model_folder.INDEX).write_text(json.dumps({"weight_map": stored_in}))
    with pytest.raises(UserError, match=words) as error:
        look(folder)
    assert len(str(error.value)) < 1000


CONFIGS = [
    ({"text_config": "x"}, "text_config is str 'x', but must be an object"),
    ({"num_experts": "8"}, "num_experts is str '8', but must be a whole number"),
    ({"num_experts": True}, "num_experts is bool True"),
    ({"num_experts_per_tok": -1}, "num_experts_per_tok is int -1"),
    ({"num_experts_per_tok": [[3]]}, "num_experts_per_tok is list"),
    ({"hidden_size": 0}, "states none of .*hidden_size"),
    ({"hidden_size": None}, "states none of .*hidden_size"),
    ({"num_experts": None, "num_local_experts": None, "zero_expert_num": 2}, "states none of num_experts"),
    ({"vocab_size": None}, "states none of vocab_size"),
    ({"vocab_size": 1 << 41}, "vocab_size is int 2199023255552"),
    ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is int 1073741824, but must be at least 0 and at most 10,000"),
    ({"vision_config": {"depth": 1 << 30}}, "depth is int 1073741824"),
    ({"vision_config": {"model_type": [None]}}, "model_type is list"),
    ({"architectures": 3}, "architectures is int 3"),
    ({"architectures": "x" * 9999}, "architectures is str"),
    ({"_attn_implementation": "flash_attention_2"}, "Delete the key"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "Delete the key"),
    ({"text_config": {"_attn_implementation": ["sdpa"]}}, "Delete the key"),
    ({"_experts_implementation": "deepgemm"}, "Only eager, batched_mm, grouped_mm run without another package"),
    ({"experts_implementation": "sonicmoe"}, "Delete the key"),
    ({"text_config": {"experts_implementation": "deepgemm"}}, "Delete the key"),
    ({"rope_parameters": {"rope_type": 3}}, "transformers cannot build the model"),
    ({"quantization_config": {}}, "empty quantization_config, which transformers refuses. Delete the key"),
    ({"text_config": {"quantization_config": {}}}, "empty quantization_config"),
    ({"is_encoder_decoder": True}, "keeps no layers under a name that this version knows"),
]


@pytest.mark.parametrize(("changes", "words"), CONFIGS, ids=lambda value: str(value)[:50])
def test_a_value_of_a_wrong_type_in_config_json_is_named(changes, words, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=f"(?s){words}") as error:
        look(folder)
    assert len(str(error.value)) < 1500


def test_a_nested_config_json_is_no_recursion(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="config.json is not JSON"):
        look(folder)


def test_what_is_whole_passes(folder):
    look(folder)
