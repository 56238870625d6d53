"""A tokenizer that cannot be built is refused with the file that is wrong, and what to install or to run."""

import json

import pytest
from tiny_project import make_tiny

from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


def changed(folder, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(change(content)))


def only(folder, name, content):
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)


CASES = {
    "a pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"has a pointer of git-LFS in place of tokenizer.json. Run `git lfs pull`",
    ),
    "a pointer of an old one": (
        lambda f: only(f, "tokenizer.model", POINTER.encode()),
        "has a pointer of git-LFS in place of tokenizer.model",
    ),
    "cut": (lambda f: (f / "tokenizer.json").write_text('{"model": {'), "has a tokenizer.json that is not JSON"),
    "without its model": (lambda f: changed(f, lambda c: {"added_tokens": []}), "has a tokenizer.json without `model`"),
    "a list": (lambda f: changed(f, lambda c: [c]), "has a tokenizer.json without `model`"),
    "sentencepiece alone": (
        lambda f: only(f, "tokenizer.model", SENTENCEPIECE),
        r"a model of sentencepiece, and no tokenizer.json. Write that once: `pip install sentencepiece protobuf`",
    ),
    "tiktoken alone": (
        lambda f: only(f, "tokenizer.model", b"IQ== 0\nIg== 1\n"),
        "tokenizer.model is no model of sentencepiece. Add the tokenizer.json",
    ),
}


@pytest.mark.parametrize("kind", ["TokenizersBackend", "LlamaTokenizer", None])
@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_tokenizer_is_said(case, kind, tmp_path):
    damage, said = CASES[case]
    folder = make_tiny(tmp_path / "tiny")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = kind
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v}))
    open_tokenizer(folder)
    damage(folder)
    with pytest.raises(UserError, match=rf"^{folder} .*{said}") as caught:
        open_tokenizer(folder)
    assert "tiktoken" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_damaged_file_beside_tokenizer_json_is_named(name, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / name).write_text('{"bos_token": "<')
    try:
        open_tokenizer(folder)  # transformers does not read each of them
    except UserError as error:
        assert f"has a {name} that is not JSON" in str(error)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_a_tokenizer_that_drops_merges_at_random_is_refused(rate, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    changed(folder, lambda content: content | {"model": content["model"] | {"dropout": rate}})
    with pytest.raises(UserError, match=rf"leaves out merges at random \(`dropout: {rate}.*Set `dropout` to null"):
        open_tokenizer(folder)
    changed(folder, lambda content: content | {"model": content["model"] | {"dropout": None}})
    open_tokenizer(folder)
