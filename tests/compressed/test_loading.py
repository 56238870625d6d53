"""load refuses what is damaged by one clear error, and a save that fails can be tried again."""

import json
import shutil

import architectures
import numpy as np
import pytest
import torch
from by_stages import drawn
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.checkpoints.model_folder import INDEX, SINGLE, shard_files
from mergemoe.errors import UserError
from mergemoe.models import layout

pytestmark = pytest.mark.usefixtures("own_module_cache")
MAP = "model.layers.1.mlp.experts.expert_map"


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact")
    model = mergemoe.load(architectures.save("qwen3_moe", folder / "full"), "cpu")
    model = mergemoe.compress(model, drawn(), experts=4, method="average")
    model.save_pretrained(folder / "compact", max_shard_size="1GB")
    return folder / "compact"


@pytest.fixture
def folder(compact, tmp_path):
    made = tmp_path / "copy"
    made.mkdir()
    for path in compact.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def stored(folder, **changes):
    tensors = load_file(folder / SINGLE) | changes
    save_file({k: t for k, t in tensors.items() if t is not None}, folder / SINGLE, metadata={"format": "pt"})


def configured(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


MAPS = {
    "beyond the experts": (torch.tensor([0, 1, 2, 3, 4, 0, 0, 0]), "from 0 to 4, but there are 4 experts"),
    "below 0": (torch.tensor([0, 1, 2, 3, -1, 0, 0, 0]), "from -1 to 3, but there are 4 experts"),
    "far away": (torch.tensor([0, 1, 2, 3, 1 << 40, 0, 0, 0]), "but there are 4 experts"),
    "too short": (torch.tensor([0, 1, 2, 3]), "expert_map"),
    "too long": (torch.arange(9) % 4, "expert_map"),
    "of two dimensions": (torch.zeros(2, 4, dtype=torch.int64), "expert_map"),
    "of floats": (torch.tensor([0.5, 1, 2, 3, 0, 0, 0, 0]), "expert_map is stored as F32, not as I64"),
    "of bytes": (torch.zeros(8, dtype=torch.uint8), "expert_map is stored as U8, not as I64"),
    "missing": (None, "expert_map is in no file"),
}


# transformers casts a map of another type before the code that stands alone sees it.
SEEN_ALONE = [name for name, (found, _) in MAPS.items() if found is None or found.dtype == torch.int64]


@pytest.mark.parametrize(("name", "alone"), [*((name, False) for name in MAPS), *((name, True) for name in SEEN_ALONE)])
def test_an_expert_map_that_maps_to_no_expert_is_refused_by_both_codes(name, alone, folder):
    found, words = MAPS[name]
    stored(folder, **{MAP: found})
    if alone:
        with pytest.raises((ValueError, RuntimeError), match="(?s)expert_map|size|shape"):
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    else:
        with pytest.raises(UserError, match=f"(?s){words}|size mismatch|shape"):
            mergemoe.load(folder, "cpu")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("key", ["lm_head.weight", "model.layers.1.input_layernorm.weight"])
def test_a_weight_that_transformers_would_cast_is_refused(dtype, key, folder):
    stored(folder, **{key: load_file(folder / SINGLE)[key].to(dtype)})
    with pytest.raises(UserError, match=f"{key} is stored as .*no quantization_config"):
        mergemoe.load(folder, "cpu")


def test_a_tensor_that_the_model_of_config_json_does_not_read_is_named(compact, folder):
    stored(folder, **{"model.layers.1.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(UserError, match="has 1 tensors that the model .* does not read, such as .*q_proj.bias"):
        mergemoe.load(folder, "cpu")
    full = compact.parent / "full"
    before = (full / "config.json").read_text()
    try:
        configured(full, lambda config: config.update(num_hidden_layers=2))
        with pytest.raises(UserError, match="has .* tensors that the model .* does not read, such as model.layers.2"):
            mergemoe.load(full, "cpu")
    finally:
        (full / "config.json").write_text(before)


def compacted(**changes):
    return lambda config: config["mergemoe"].update(changes)


def first(**changes):
    return lambda config: next(iter(config["mergemoe"]["experts"].values())).update(changes)


def first_format(reference):
    """Formerly the class stood in auto_map alone."""

    def change(config):
        config["mergemoe"] = {"format": 1, "experts": config["mergemoe"]["experts"]}
        config["auto_map"] = {"AutoModelForCausalLM": reference}

    return change


NO_CLASS = "names no class of transformers that was compressed"
CONFIGS = {
    "no format": (lambda config: config["mergemoe"].pop("format"), "has format None, which must be a whole number"),
    "text for a format": (compacted(format="1"), "has format '1', which must be a whole number"),
    "a newer format": (compacted(format=3), "this version reads up to 2. Update mergemoe"),
    "no experts": (compacted(experts={}), "lists no experts"),
    "a list of experts": (compacted(experts=[1]), "lists no experts"),
    "text for mergemoe": (lambda config: config.update(mergemoe="x"), "mergemoe is str 'x', but must be an object"),
    "no class": (lambda config: config["mergemoe"].pop("class"), NO_CLASS),
    "a list of classes": (compacted(**{"class": ["Qwen3MoeForCausalLM"]}), NO_CLASS),
    "another class": (compacted(**{"class": "Nothing"}), NO_CLASS),
    "a function": (compacted(**{"class": "set_seed"}), NO_CLASS),
    "a class that generates no text": (
        compacted(**{"class": "Qwen3MoeModel"}),
        "not one of transformers' classes that",
    ),
    "format 1 without auto_map": (first_format({}), NO_CLASS),
    "format 1 with a list of classes": (first_format(["modeling_mergemoe.MergeMoeQwen3MoeForCausalLM"]), NO_CLASS),
    "format 1 with another class": (first_format("modeling_mergemoe.MergeMoeNothing"), NO_CLASS),
    "more experts than before": (first(experts=[4, 8]), "states no sizes for model.layers.1.mlp.experts"),
    "sizes as text": (first(width=["24", "24"]), "states no sizes"),
    "no map": (first(expert_map={}), "states no sizes"),
    "another number of experts": (first(experts=[8, 3]), "from 0 to 3, but there are 3 experts"),
    "other shapes": (first(parameters={"gate_up_proj": [3, 2, 2], "down_proj": [3, 2, 2]}), "transformers cannot load"),
    "other modules": (
        lambda config: config["mergemoe"].update(
            experts={"model.x": next(iter(config["mergemoe"]["experts"].values()))}
        ),
        "transformers cannot load",
    ),
    "an unknown architecture": (lambda config: config.update(model_type="newest"), "transformers cannot load"),
    "hub code for attention": (lambda config: config.update(_attn_implementation="a/b"), "Delete the key"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_json_that_does_not_fit_is_refused(name, folder):
    change, words = CONFIGS[name]
    configured(folder, change)
    with pytest.raises(UserError, match=words) as error:
        mergemoe.load(folder, "cpu")
    assert len(str(error.value)) < 1500


def test_a_cut_generation_config_is_refused_and_not_left_out(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 1,')
    with pytest.raises(UserError, match="generation_config.json is not JSON"):
        mergemoe.load(folder, "cpu")


def test_a_checkpoint_of_the_first_format_is_read(folder):
    expected = mergemoe.load(folder, "cpu").state_dict()
    configured(folder, first_format("modeling_mergemoe.MergeMoeQwen3MoeForCausalLM"))
    found = mergemoe.load(folder, "cpu").state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_index_that_names_a_pickle_is_never_opened(folder):
    class Run:
        def __reduce__(self):
            return (print, ("it was run",))

    torch.save(Run(), folder / "pytorch_model.bin")
    keys = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(keys, "pytorch_model.bin")}))
    with pytest.raises(UserError, match="never opened"):
        mergemoe.load(folder, "cpu")
    (folder / "pytorch_model.bin.index.json").write_text((folder / INDEX).read_text())
    (folder / INDEX).unlink()
    with pytest.raises(UserError, match="never opened"):
        mergemoe.load(folder, "cpu")


@pytest.mark.parametrize("left", [-100, 5000, 4, 0])
def test_a_truncated_shard_is_named(left, folder):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:left])
    with pytest.raises(UserError, match=f"{SINGLE} has [0-9,]+ bytes"):
        mergemoe.load(folder, "cpu")


def test_a_tensor_that_is_missing_and_an_adapter_are_named(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        mergemoe.load(folder, "cpu")
    (folder / "adapter_config.json").unlink()
    stored(folder, **{"model.norm.weight": None})
    with pytest.raises(UserError, match="lacks 1 tensors that the model needs, such as model.norm.weight"):
        mergemoe.load(folder, "cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "gpu"}, "`device` must be a torch device"),
        ({"device": "cuda:99"}, "`device` must be a torch device"),
        ({"device": "mps"}, "`device` must be a torch device"),
        ({"device": 1.5}, "`device` must be a torch device"),
        ({"device": 10**400}, "`device` must be a torch device"),
        ({"device": np.array([1, 2])}, "`device` must be a torch device"),
        ({"dtype": np.array([1, 2])}, "`dtype` must be auto"),
        ({"path": None}, "`path` must be the path of a folder; got None"),
        ({"path": 3}, "`path` must be the path of a folder; got 3"),
        ({"dtype": "float7"}, "`dtype` must be auto.*; got 'float7'"),
        ({"dtype": "nn"}, "`dtype` must be auto"),
        ({"dtype": 16}, "`dtype` must be auto.*; got 16"),
    ],
)
def test_a_path_a_device_and_a_dtype_that_are_none_are_refused(arguments, words, folder):
    with pytest.raises(UserError, match=words):
        mergemoe.load(**{"path": folder, "device": "cpu", **arguments})


@pytest.mark.parametrize("path", [None, 3, b"all", "a\0b"])
def test_a_place_to_save_that_is_no_path_is_refused(path):
    with pytest.raises(UserError, match="`path` must be the path of a folder"):
        mergemoe.save(None, path)


def broken(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["weights", "code", "tokenizer", "rename"])
def test_a_save_that_fails_leaves_nothing_and_can_be_tried_again(step, compact, tiny, tmp_path, monkeypatch):
    model = mergemoe.load(compact, "cpu")
    model.name_or_path = str(tiny)
    out = tmp_path / "new" / "saved"
    with monkeypatch.context() as patch:
        if step == "weights":
            patch.setattr("safetensors.torch.save_file", broken)
            patch.setattr("transformers.modeling_utils.safe_save_file", broken)
        if step == "code":
            patch.setattr("mergemoe.compressed.modeling.source", broken)
        if step == "tokenizer":
            patch.setattr(shutil, "copyfile", broken)
        if step == "rename":
            patch.setattr("os.replace", broken)
        with pytest.raises(UserError, match=r"No space left.* while .*saved was written\. Make room there"):
            mergemoe.save(model, out)
    assert not any(out.parent.iterdir())
    mergemoe.save(model, out)
    torch.testing.assert_close(mergemoe.load(out, "cpu").state_dict(), model.state_dict())
    assert [path.name for path in out.parent.iterdir()] == ["saved"]
    with pytest.raises(UserError, match="exists. save writes a new folder"):
        mergemoe.save(model, out)


def test_a_link_that_leads_nowhere_is_not_written_over(compact, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        mergemoe.save(mergemoe.load(compact, "cpu"), tmp_path / "link")


@pytest.mark.parametrize("working", [0, 9, 1 << 30])
def test_a_number_of_experts_that_no_token_can_choose_is_refused(working, folder):
    configured(folder, lambda config: config.update(num_experts_per_tok=working))
    with pytest.raises(UserError, match=f"{working} experts work on a token, but a layer has 8"):
        mergemoe.load(folder, "cpu")


EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
RENAMED = {
    "model.layers.1.mlp.experts.K.up_proj.weight": "named otherwise",  # it comes behind the others
    "model.layers.1.mlpoexperts.5.up_proj.weight": "named otherwise",  # a dot of a pattern is any letter
    "model.layers.1.mlp.experts.5.up_projxweight": "named otherwise",
    "model.layers.1.mlp.experts.55.up_proj.weight": "not numbered in turn",
}


@pytest.mark.parametrize(("name", "said"), RENAMED.items())
def test_an_expert_that_transformers_would_take_for_another_is_refused(tiny, tmp_path, name, said):
    folder = shutil.copytree(tiny, tmp_path / "renamed")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors.pop(EXPERT)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{folder}: .*experts.*{said}"):
        mergemoe.load(folder, "cpu")
    with pytest.raises(UserError, match=str(folder)):
        layout.describe_layout(folder, digests=False)


def test_a_refusal_names_the_folder_whatever_is_wrong(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "bare")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3MoeModel"]}))
    for call in (lambda: mergemoe.load(folder, "cpu"), lambda: layout.describe_layout(folder, digests=False)):
        try:
            call()
        except UserError as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize("prefix", ["inner.", "wrapped.net."])
def test_names_behind_a_prefix_are_said_to_be_so(prefix, tmp_path):
    full = architectures.save("qwen3_moe", tmp_path / "full")
    tensors = {}
    for shard in shard_files(full):
        tensors |= {prefix + key: tensor for key, tensor in load_file(shard).items()}
        shard.unlink()
    (full / INDEX).unlink()
    save_file(tensors, full / SINGLE, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"A program saved it inside another model. Take '{prefix}' out of all names"):
        mergemoe.load(full, "cpu")
