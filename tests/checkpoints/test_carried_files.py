"""Every copy of a checkpoint has what loaders read beside the weights, and names no Python file that it lacks."""

import json

import pytest
import torch
from by_stages import by_workflow, drawn
from predicting import with_predicting_layer
from quantized import make_mxfp4
from safetensors.torch import load_file
from tiny_project import make_tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import mergemoe
from mergemoe.checkpoints import carried_files, license
from mergemoe.compressed.assemble import assemble
from mergemoe.models import layout
from mergemoe.models.dequantize import dequantize_checkpoint

pytestmark = pytest.mark.usefixtures("own_module_cache")

IDS = torch.randint(3, 4096, (8, 32), generator=torch.Generator().manual_seed(2))
CODE = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoModelForCausalLM": "own.OwnModelForCausalLM"}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
OTHERS = {
    "own.py": "",
    "tokenizer_of_its_own.py": "",
    "NOTICE": "notice",
    "LICENSE": "license",
    "USE_POLICY.md": "policy",
    "LICENSES/MIT.txt": "MIT",
    "chat_template.jinja": f"D{TEMPLATE}",
    "additional_chat_templates/tool_use.jinja": f"T{TEMPLATE}",
    "additional_chat_templates/rag.jinja": f"R{TEMPLATE}",
    "processor_config.json": json.dumps(
        {
            "auto_map": {"AutoProcessor": "own.OwnProcessor"},
            "patch": 3,
            "feature_extractor": {"auto_map": {"AutoFeatureExtractor": "own.F"}, "rate": 1},
        }
    ),
    "MODEL_LICENSE": "license, too",
    "Third_Party_Open_Source_Software_Notice": "notices",
    "TERMS_OF_USE.md": "terms",
    "qwen.tiktoken": "IQ== 0",
    "README.md": "---\nlicense: apache-2.0\n---\n",
}


def with_files_of_its_own(folder):
    """Add what checkpoints of the hub have: code of their own, named templates, terms."""
    edit(folder / "config.json", auto_map=CODE, custom_pipelines={"own": {"impl": "own.Pipeline", "pt": ["AutoModel"]}})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return with_files_of_its_own(make_tiny(tmp_path_factory.mktemp("original") / "tiny"))


def saved(original, folder, **options):
    model = mergemoe.compress(mergemoe.load(original, "cpu"), IDS, experts=4, **options)
    mergemoe.save(model, folder / "saved")
    return folder / "saved"


def assembled(original, folder, method):
    tokens = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    by_workflow(original, tokens, folder, torch.bfloat16, method)
    return folder / "workflow"


def kept_whole(original, folder):
    described = layout.describe_layout(original, digests=False)
    groups = {"expert_map": torch.arange(8), "groups": torch.zeros(0, dtype=torch.int64)}
    assemble(described, {entry["layer"]: groups for entry in described["layers"]}, folder / "whole")
    return folder / "whole"


COPIES = {
    "save, stock": lambda original, folder: saved(original, folder, method="reap"),
    "save, compact": lambda original, folder: saved(original, folder, method="average"),
    "assemble, stock": lambda original, folder: assembled(original, folder, "reap"),
    "assemble, compact": lambda original, folder: assembled(original, folder, "average"),
    "assemble, all experts": kept_whole,
}


@pytest.fixture(scope="module", params=COPIES)
def copy(request, original, tmp_path_factory):
    return COPIES[request.param](original, tmp_path_factory.mktemp("copy"))


def named_code(folder):
    """The Python modules that any JSON file of a folder names."""
    found = set()
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for key in carried_files._CODE if isinstance(content, dict) else ():
            found |= {text.split(".")[0] for text in texts(content.get(key)) if "." in text}
    return found


def texts(value):
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in texts(part)]
    return [value] if isinstance(value, str) else []


def test_a_copy_names_no_python_file_that_it_lacks(copy, original):
    assert named_code(original) == {"own"}
    assert named_code(copy) <= {path.stem for path in copy.glob("*.py")} <= {"modeling_mergemoe"}


def test_a_copy_loads_with_and_without_trust(copy):
    AutoConfig.from_pretrained(copy, trust_remote_code=True)
    AutoTokenizer.from_pretrained(copy, trust_remote_code=True)
    stored = {key for path in copy.glob("*.safetensors") for key in load_file(path)}
    _, info = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True, output_loading_info=True)
    assert stored and not info["missing_keys"] and not info["unexpected_keys"]
    mergemoe.load(copy, "cpu")


def test_a_copy_has_all_chat_templates(copy, original):
    messages = [{"role": "user", "content": "hello"}]
    for named, first in ({"chat_template": None}, "D"), ({"chat_template": "rag"}, "R"), ({"tools": [dict]}, "T"):
        given = {"tools": [tool]} if "tools" in named else named
        text = AutoTokenizer.from_pretrained(copy).apply_chat_template(messages, tokenize=False, **given)
        assert text == f"{first}hello"


def tool(place: str) -> str:
    """Look up the weather.

    Args:
        place: of interest.
    """
    return place


def test_a_copy_has_the_terms_and_other_files_as_they_were(copy, original):
    terms = ("NOTICE", "LICENSE", "USE_POLICY.md", "MODEL_LICENSE", "TERMS_OF_USE.md", "LICENSES/MIT.txt")
    for name in (*terms, "Third_Party_Open_Source_Software_Notice", "qwen.tiktoken", "tokenizer.json"):
        assert (copy / name).read_bytes() == (original / name).read_bytes()
    assert json.loads((copy / "processor_config.json").read_text()) == {"patch": 3, "feature_extractor": {"rate": 1}}
    assert "own" not in (copy / "tokenizer_config.json").read_text()


def test_a_copy_that_keeps_all_experts_has_the_original_weights(original, tmp_path):
    copy = kept_whole(original, tmp_path)
    for path in original.glob("*.safetensors"):
        assert (copy / path.name).read_bytes() == path.read_bytes()


def test_without_code_in_it_a_file_is_copied_byte_for_byte(tmp_path):
    folder, out = make_tiny(tmp_path / "tiny"), tmp_path / "out"
    out.mkdir()
    carried_files.carry_files(folder, out)
    assert sorted(path.name for path in out.iterdir()) == carried_files.carried_files(folder)
    for path in out.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize("text", ["{", '["auto_map"]', "null", '{"auto_map"' + "[" * 5000, ""])
def test_a_damaged_settings_file_is_copied_as_it_is(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "tokenizer_config.json").write_text(text)
    carried_files.carry_files(tmp_path, tmp_path / "out")
    assert (tmp_path / "out/tokenizer_config.json").read_text() == text


def test_a_dequantized_copy_carries_the_license(tmp_path):
    make_mxfp4(tmp_path / "quantized")
    dequantize_checkpoint(with_files_of_its_own(tmp_path / "quantized"), tmp_path / "plain")
    assert license.stated_license(tmp_path / "plain") == {"license": "apache-2.0"}
    assert not named_code(tmp_path / "plain")
    for name in ("NOTICE", "LICENSE", "additional_chat_templates/rag.jinja"):
        assert (tmp_path / "plain" / name).read_text() == OTHERS[name]


def test_layers_that_are_not_in_memory_are_not_claimed_by_a_saved_copy(tmp_path):
    folder = with_predicting_layer("deepseek_v3", tmp_path / "made")
    model = mergemoe.compress(mergemoe.load(folder, "cpu"), drawn(), experts=6, method="reap")
    mergemoe.save(model, tmp_path / "saved")
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert json.loads((tmp_path / "saved/config.json").read_text())["num_nextn_predict_layers"] == 0
    mergemoe.load(tmp_path / "saved", "cpu")


@pytest.mark.parametrize("key", ["mtp_num_hidden_layers", "num_mtp_modules"])
def test_such_layers_under_another_name_are_not_claimed_either(key, tmp_path):
    edit(make_tiny(tmp_path / "tiny") / "config.json", **{key: 1})
    mergemoe.save(mergemoe.load(tmp_path / "tiny", "cpu"), tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())[key] == 0
