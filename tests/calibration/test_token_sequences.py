"""Drawing sequences: known answers on letters, determinism by seed, clear errors."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.calibration.token_sequences import draw_sequences, heldout_rows, read_documents, sequences_from_source
from mergemoe.errors import UserError

END = 0


def encode(text):
    return [ord(c) for c in text]


def test_packing_joins_documents_and_loses_no_token_between_rows():
    drawn = draw_sequences(["abc", "de", "fghi"], encode, END, samples=3, length=4, seed=0, pack=True)
    order = [entry["document"] for entry in drawn.documents]
    stream = [token for i in order for token in [END, *encode(["abc", "de", "fghi"][i])]]
    assert sum(drawn.ids, []) == stream[:12]
    assert drawn.mask == [[1] * 4] * 3
    assert sum(entry["tokens"] for entry in drawn.documents) == 12


def test_padding_gives_each_document_a_row_and_masks_the_rest():
    drawn = draw_sequences(["abc", "de"], encode, END, samples=2, length=5, seed=0, pack=False)
    for row, mask, entry in zip(drawn.ids, drawn.mask, drawn.documents, strict=True):
        text = ["abc", "de"][entry["document"]]
        assert row == [END, *encode(text), *[END] * (4 - len(text))]
        assert mask == [1] * (1 + len(text)) + [0] * (4 - len(text))


def test_the_seed_decides_the_order_and_nothing_else_does():
    documents = [chr(97 + i) * 9 for i in range(20)]
    draws = [draw_sequences(documents, encode, END, samples=5, length=8, seed=seed, pack=True) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("pack", [True, False])
def test_a_text_too_short_is_named_with_numbers(pack):
    with pytest.raises(UserError, match=r"corpus.txt gives 1 sequences of 4 tokens .* asks for 3: lower `samples`"):
        draw_sequences(["abcd"], encode, END, samples=3, length=4, seed=0, pack=pack, source="corpus.txt")


@given(samples=st.integers(2, 200), holdout=st.floats(0, 0.9), seed=st.integers(0, 9))
def test_the_held_out_share_is_kept_and_never_everything(samples, holdout, seed):
    try:
        held = heldout_rows(samples, holdout, seed)
    except UserError:
        assert round(samples * holdout) >= samples
        return
    assert len(held) == samples
    assert sum(held) == (max(1, round(samples * holdout)) if holdout else 0)
    assert not all(held)


def test_documents_come_from_jsonl_and_text_gzipped_or_not(tmp_path):
    rows = "".join(json.dumps({"text": t}) + "\n" for t in ("one", "two"))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "c.txt").write_text("one\n<|endoftext|>\ntwo\n")
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        assert read_documents(str(tmp_path / name), "text") == ["one", "two"]


def test_rows_end_where_json_lines_say_they_do(tmp_path):
    documents = ["one\u2028line", "next\u0085line", "last"]
    rows = [json.dumps({"text": document}, ensure_ascii=False) for document in documents]
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + "\r\n".join([*rows, "  ", ""])).encode())
    assert read_documents(str(tmp_path / "a.jsonl"), "text") == documents


def test_a_tokenizer_without_a_token_to_begin_a_document_is_refused(tmp_path):
    class Bare:
        bos_token_id = eos_token_id = None
        name_or_path = "mine"

    with pytest.raises(UserError, match="tokenizer of mine has neither a bos_token nor an eos_token"):
        sequences_from_source(Bare(), samples=1, length=2, seed=0, pack=True, field="text", source="none")


def test_unreadable_sources_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n')
    (tmp_path / "a.csv").write_text("x")
    for name, message in {"a.jsonl": "key 'text'", "a.csv": ".jsonl or .txt", "no.txt": "no such file"}.items():
        with pytest.raises(UserError, match=message):
            read_documents(str(tmp_path / name), "text")


@pytest.mark.parametrize("damage", ["cut", "flip", "no gzip", "no UTF-8"])
def test_a_damaged_text_is_named_with_a_way_out(damage, tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%x"}\n' % (7**n) for n in range(300)))
    content = {
        "cut": whole[: len(whole) // 2],
        "flip": whole[:500] + bytes([whole[500] ^ 255]) + whole[501:],
        "no gzip": b"text",
        "no UTF-8": gzip.compress(b"\xff\xfe"),
    }
    (tmp_path / "a.jsonl.gz").write_bytes(content[damage])
    with pytest.raises(UserError, match=r"a.jsonl.gz cannot be read \(.*Bring it again, or name another `source`"):
        read_documents(str(tmp_path / "a.jsonl.gz"), "text")


def test_a_hugging_face_data_set_is_asked_for_at_its_commit(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(*args, **kwargs):
        asked["call"] = (args, kwargs)
        return {"text": ["one"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_documents(None, "text", "allenai/c4", "a" * 40, "en") == ["one"]
    assert asked["call"] == (("allenai/c4", "en"), {"revision": "a" * 40, "split": "train"})
