"""A token without a row in the model's embedding is refused, wherever the texts of a run have it."""

import copy
import gzip

import pytest
from tiny_project import make_tiny

from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.calibration.vocabulary import check_vocabulary
from mergemoe.errors import UserError


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
