"""A tokenizer that cannot be built is refused with the file that is wrong, and what to install or to run."""

import copy
import gzip
import json

import pytest
from tiny_project import make_tiny

from mergemoe.calibration.tokenizer import check_vocabulary, open_tokenizer
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


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return open_tokenizer(make_tiny(tmp_path_factory.mktemp("own") / "tiny"))


@pytest.mark.parametrize("rows", [4096, 8192])
def test_as_many_rows_as_tokens_or_more_are_right(own, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "<|im_end|>"}')
    check_vocabulary(own, rows, [tmp_path / "rows.jsonl"])


def test_the_tokenizer_of_another_model_is_refused_whatever_the_texts_are(own):
    with pytest.raises(UserError, match=r"gives the token 4095 \('.*'\), but the model's embedding has 2000 rows"):
        check_vocabulary(own, 2000, [])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "task.yaml"])
def test_an_added_token_counts_where_a_task_has_it(own, name, tmp_path):
    tokenizer = copy.deepcopy(own)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    for text in "plain", "<|im_end|>":
        with gzip.open(tmp_path / name, "wt") if name.endswith("gz") else (tmp_path / name).open("w") as file:
            file.write(f'{{"text": "{text}"}}')
        if text == "plain":
            check_vocabulary(tokenizer, 4096, [tmp_path / name])
    with pytest.raises(UserError, match=rf"{name}: .*gives the token 4096 \('<\|im_end\|>'\).*4096 rows"):
        check_vocabulary(tokenizer, 4096, [tmp_path / name])


@pytest.mark.parametrize("written", ["<|im_end|>", "\\u003c|im_end|\\u003e"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_escapes_and_damage_hide_no_token_and_raise_nothing_else(own, written, name, tmp_path):
    tokenizer = copy.deepcopy(own)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    content = f'{{"text": "{written}"}}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=r"gives the token 4096"):
        check_vocabulary(tokenizer, 4096, [tmp_path / name])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:12])
    (tmp_path / "no.gz").write_bytes(b"plain")
    check_vocabulary(tokenizer, 4096, [tmp_path / name, tmp_path / "no.gz"])


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_damaged_file_beside_tokenizer_json_is_named(name, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / name).write_text('{"bos_token": "<')
    try:
        open_tokenizer(folder)  # transformers does not read each of them
    except UserError as error:
        assert f"has a {name} that is not JSON" in str(error)
