"""Documents of files: the same text however it is stored, and one clear error for what is no text."""

import gzip
import json
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.calibration import documents, text_rows
from mergemoe.calibration.documents import open_documents
from mergemoe.errors import UserError


def read(path, field="text"):
    opened = open_documents(str(path), field)
    return list(opened.read(range(opened.count)))


def test_documents_come_from_jsonl_and_text_gzipped_or_not(tmp_path):
    rows = "".join(json.dumps({"text": t}) + "\n" for t in ("one", "two"))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "c.txt").write_text("one\n<|endoftext|>\ntwo\n")
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        assert read(tmp_path / name) == ["one", "two"]


def test_rows_end_where_json_lines_say_they_do(tmp_path):
    texts = ["one\u2028line", "next\u0085line", "last"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + "\r\n".join([*rows, "  ", ""])).encode())
    assert read(tmp_path / "a.jsonl") == texts


def test_a_line_of_endoftext_ends_a_document_wherever_it_stands(tmp_path):
    end = "<|endoftext|>"
    (tmp_path / "a.txt").write_bytes(
        f"\ufeff{end}\r\na\r\n\r\nb {end}\r\n{end}\r\n{end}\r\n\r\n{end}\r\nc\r\n{end}".encode()
    )
    assert read(tmp_path / "a.txt") == [f"a\n\nb {end}", "c"]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8), data=st.data())
def test_documents_are_read_in_the_order_asked_for_in_passes_of_any_size(texts, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"text": text}) for text in texts).encode()))
    order = data.draw(st.permutations(range(len(texts))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "AT_ONCE", data.draw(st.integers(1, 100)))
        opened = open_documents(str(path), "text")
        assert (opened.count, opened.characters) == (len(texts), sum(map(len, texts)))
        assert list(opened.read(order)) == [texts[i] for i in order]


def test_unreadable_sources_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"content": "x", "more": 1}\n')
    (tmp_path / "a.csv").write_text("x")
    said = {
        "a.jsonl": "row 2 has no field 'text'. Its fields are 'content', 'more'",
        "a.csv": "neither a .jsonl nor",
        "no.txt": "no such file",
    }
    for name, message in said.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


NO_TEXT = {
    "null": "is null, not text",
    "12": "is a number",
    "NaN": "is a number",
    "true": "is true or false",
    "[]": "is a list of nothing",
    '["a", null]': "is a list of null, text",
    '[{"role": "user", "content": "a"}, "b"]': "is a list of an object, text",
    '{"value": "a"}': "is an object",
    r'"a\ud83d b"': r"holds '\\ud83d' at character 2, which is half",
    r'"\udc00"': r"holds '\\udc00' at character 1",
}
NO_ROW = {
    "[" * 100_000: "is not JSON",
    "[]": "is a list, not a JSON object",
    "null": "is null, not a JSON object",
    '"text"': "is text, not a JSON object",
    "{'text': 1}": "is not JSON",
    '{"text": "a"': "is not JSON",
    '{"text": ' + "9" * 5000 + "}": "is not JSON",
    "{}": "has no field 'text'. Its fields are none",
    r'{"\ud83d": 1}': r"has no field 'text'. Its fields are '\\ud83d'",
}


@pytest.mark.parametrize(
    ("row", "message"),
    [*((f'{{"text": {value}}}', f"field 'text' {said}") for value, said in NO_TEXT.items()), *NO_ROW.items()],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_row_that_is_no_text_is_named_wherever_it_stands(row, message, name, tmp_path):
    content = ('{"text": "good"}\n' * 40 + row + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=rf"{name}: row 41:? {message}") as caught:
        read(tmp_path / name)
    str(caught.value).encode()  # whatever is in the row, the message can be printed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def is_text(value):
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


@given(value=JSON)
def test_a_value_is_read_as_it_is_or_refused(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text(json.dumps({"text": value}))
    if is_text(value):
        assert read(path) == [value]
    elif isinstance(value, list) and value and all(map(is_text, value)):
        assert read(path) == ["\n\n".join(value)]
    else:
        with pytest.raises(UserError, match="a.jsonl: row 1: field 'text'"):
            read(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "no gzip", "no UTF-8"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
def test_a_damaged_text_is_named_with_a_way_out(damage, name, tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%x"}\n' % (7**n) for n in range(300)))
    content = {
        "cut": whole[: len(whole) // 2],
        "flip": whole[:500] + bytes([whole[500] ^ 255]) + whole[501:],
        "no gzip": b"text",
        "no UTF-8": gzip.compress(b"{}\n\xff\xfe"),
    }
    (tmp_path / name).write_bytes(content[damage])
    with pytest.raises(UserError, match=rf"{name}: .*row \d") as caught:
        read(tmp_path / name)
    if name == "a.txt.gz" or damage in {"no gzip"}:
        assert "cannot be read from row" in str(caught.value) and "Bring it again, or name another" in str(caught.value)


def test_utf_8_that_ends_inside_a_character_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\né".encode()[:-1])
    with pytest.raises(UserError, match="a.txt: cannot be read from row 2 on"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["Plain words.\nAnd more of them.\n", "Слово за слово\n\nи дальше\n", "one line"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_of_another_width_is_refused(encoding, text, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="a.txt: cannot be read from row"):
        read(tmp_path / "a.txt")


def test_a_zero_inside_a_text_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("one \0 zero among other characters\nand \0 one more")
    assert len(read(tmp_path / "a.txt")) == 1


@pytest.mark.parametrize("name", ["shards", "shards.parquet", "rows.jsonl", "texts.txt.gz"])
def test_a_folder_is_said_to_be_one(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder. Name one file of it"):
        read(tmp_path / name)


def test_a_long_document_of_a_txt_file_is_cut_and_one_of_json_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "DOCUMENT", 10)
    monkeypatch.setattr(text_rows, "ROW", 8)
    (tmp_path / "a.txt").write_text("äbcdefgh\n\njklm\n<|endoftext|>\nx\n")
    monkeypatch.setattr(text_rows, "ROW", 20)
    assert read(tmp_path / "a.txt") == ["äbcdefgh\n\n", "x"]
    assert "1 of them were cut after 10 characters" in open_documents(str(tmp_path / "a.txt"), "text").note
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "abcdefghijk"}\n')
    with pytest.raises(UserError, match="a.jsonl: row 2 has 20 bytes or more. .* Split it"):
        read(tmp_path / "a.jsonl")


def test_too_many_rows_or_bytes_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n" * 50)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\n" * 50))
    monkeypatch.setattr(text_rows, "ROWS", 40)
    for bound in ("40 rows", "30 bytes"):
        for name in ("a.txt", "a.txt.gz"):
            with pytest.raises(UserError, match=f"{name}: has more than {bound}"):
                read(tmp_path / name)
        monkeypatch.setattr(text_rows, "TEXT", 30)


def bomb(block, times):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(block) for _ in range(times)), packer.flush()])


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
@pytest.mark.parametrize("block", [b"\n" * 2**16, b'{"text": ""}\n' * 2**12])
def test_a_bomb_of_rows_is_refused_before_its_end(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "FIRST", 2**16)
    (tmp_path / name).write_bytes(bomb(block, 64))
    with pytest.raises(UserError, match=rf"{name}: its .* bytes unpack to more than 100 times as many"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"), [("bomb.txt.gz", "unpack to more than 100 times"), ("bomb.jsonl.gz", "row 1 has")]
)
def test_a_bomb_without_rows_is_refused_before_it_takes_memory(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "FIRST", 2**20)
    monkeypatch.setattr(text_rows, "ROW", 2**20)
    monkeypatch.setattr(documents, "DOCUMENT", 2**20)
    (tmp_path / name).write_bytes(bomb(b"a" * 2**20, 256))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{name}: .*{message}"):
            read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_meanwhile_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    opened = open_documents(str(tmp_path / "a.jsonl"), "text")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="became shorter while it was read"):
        list(opened.read([1, 0]))


@pytest.fixture
def hub(monkeypatch):
    """The calls of load_dataset, which gives three rows."""
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if args[0] == "no/set":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/set' doesn't exist\nmore")
        return datasets.Dataset.from_dict({"text": ["one", None, "three"], "id": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hugging_face_data_set_is_asked_for_at_its_commit(hub):
    opened = open_documents(None, "text", "allenai/c4", "a" * 40, "en")
    assert list(opened.read([2, 0])) == ["three", "one"]
    assert hub == [(("allenai/c4", "en"), {"revision": "a" * 40, "split": "train"})]


def test_a_data_set_is_refused_as_a_file_is(hub):
    with pytest.raises(UserError, match="allenai/c4: row 2: field 'text' is null"):
        list(open_documents(None, "text", "allenai/c4").read([0, 1]))
    with pytest.raises(UserError, match="allenai/c4: has no field 'body'. Its fields are text, id"):
        open_documents(None, "body", "allenai/c4")
    with pytest.raises(UserError, match=r"no/set: the data set cannot be loaded \(Dataset 'no/set' doesn't exist\)"):
        open_documents(None, "text", "no/set")
