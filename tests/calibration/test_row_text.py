"""Rows in the forms of training data: messages, prompt and completion, paragraphs, Parquet, and rows without text."""

import datetime
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_tiny

from mergemoe.calibration import row_text
from mergemoe.calibration.chat_template import renderer
from mergemoe.calibration.documents import open_documents
from mergemoe.calibration.row_text import InvalidText
from mergemoe.calibration.token_sequences import sequences_from_source
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.errors import UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['user', 'assistant', 'tool'] %}{{ raise_exception('no role ' + m['role']) }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] or m['tool_calls'][0] }}{% endfor %}"
)
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


def written(folder, rows, kind="jsonl"):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path


def by_roles(messages):
    return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def read(path, field="text", **options):
    opened = open_documents(str(path), field, **{"render": by_roles, **options})
    return list(opened.read(range(opened.count)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("field", "row", "text"),
    [
        ("text", {"text": "plain"}, "plain"),
        ("text", {"text": ["one", "two"]}, "one\n\ntwo"),
        ("messages", {"messages": CHAT}, "<user>Hello?<assistant>Hi."),
        (["prompt", "completion"], {"prompt": "1 + 1 =", "completion": " 2"}, "1 + 1 = 2"),
        (["prompt", "completion"], {"prompt": CHAT[:1], "completion": CHAT[1:]}, "<user>Hello?<assistant>Hi."),
        (["title", "body"], {"title": "A\n", "body": ["b", "c"]}, "A\nb\n\nc"),
    ],
    ids=["text", "paragraphs", "messages", "two texts", "two conversations", "text and paragraphs"],
)
def test_each_form_of_a_row_is_read(field, row, text, kind, tmp_path):
    assert read(written(tmp_path, [row] * 5, kind), field) == [text] * 5


def test_parts_of_a_message_that_are_text_are_joined(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    path = written(tmp_path, [{"messages": [{"role": "user", "content": parts}]}])
    assert read(path, "messages") == ["<user>ab"]


REFUSED = {
    "keys of ShareGPT": (
        [{"from": "human", "value": "a"}],
        r"message 1 has the keys 'from', 'value'.*`from` is the role",
    ),
    "a role that is none": ([{"role": None, "content": "a"}], "message 1: role is null, not text"),
    "no content": ([CHAT[0], {"role": "assistant"}], "message 2 has the keys 'role'"),
    "content that is null": ([CHAT[0], {"role": "assistant", "content": None}], "message 2: content is null, not text"),
    "an image": (
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
        "message 1 has a part that is no text: .*'image'",
    ),
    "half a character": ([{"role": "user", "content": "a\ud83d"}], "message 1: content holds .* half a character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_messages_in_another_form_are_named_with_a_way_out(case, tmp_path):
    messages, said = REFUSED[case]
    path = written(tmp_path, [{"messages": CHAT}] * 3 + [{"messages": messages}])
    with pytest.raises(InvalidText, match=rf"rows.jsonl: row 4: field 'messages', {said}") as caught:
        read(path, "messages")
    assert "skip_invalid: true" in str(caught.value)


def test_a_row_of_text_and_messages_is_refused(tmp_path):
    path = written(tmp_path, [{"prompt": "a", "completion": CHAT[1:]}])
    with pytest.raises(InvalidText, match="row 1: 'prompt', 'completion' hold text and messages"):
        read(path, ["prompt", "completion"])


VALUES = st.sampled_from(["text", None, 3, ["a"], [], {"a": 1}, CHAT, [{"from": "human"}], "\ud800"])


@given(values=st.lists(VALUES, min_size=1, max_size=12), data=st.data())
def test_rows_without_text_are_left_out_and_counted_if_the_user_says_so(values, data, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("rows"), [{"text": value} for value in values])
    good = [
        text
        for text in ({"text": "text", "['a']": "a"}.get(str(value)) or _rendered(value) for value in values)
        if text
    ]
    if len(good) < len(values):
        with pytest.raises(InvalidText, match="row "):
            read(path)
    opened = open_documents(str(path), "text", skip_invalid=True, render=by_roles)
    assert (opened.count, opened.skipped) == (len(good), len(values) - len(good))
    order = data.draw(st.permutations(range(opened.count)))
    assert list(opened.read(order)) == [good[i] for i in order]


def _rendered(value):
    return by_roles(value) if value == CHAT else None


def test_a_row_that_is_no_object_is_an_error_all_the_same(tmp_path):
    path = written(tmp_path, [{"text": "a"}, []])
    with pytest.raises(UserError, match="row 2 is a list, not a JSON object"):
        read(path, skip_invalid=True)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    folder = make_tiny(tmp_path_factory.mktemp("chat") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return open_tokenizer(folder)


def drawn(tokenizer, path, **options):
    settings = {"samples": 1, "length": 40, "seed": 0, "pack": True, "field": "messages", "source": str(path)}
    return sequences_from_source(tokenizer, 4096, **settings | options)


def test_the_models_own_template_renders_and_a_document_begins_once(chatting, tmp_path):
    path = written(tmp_path, [{"messages": CHAT}] * 9)
    ids = drawn(chatting, path).ids[0]
    assert chatting.decode(ids).startswith(f"{chatting.bos_token}<user>Hello?<assistant>Hi.{chatting.bos_token}<user>")
    assert chatting.bos_token_id not in ids[1:3]


def test_what_the_template_refuses_is_named_by_its_row(chatting, tmp_path):
    path = written(tmp_path, [{"messages": CHAT}] * 9 + [{"messages": [{"role": "system", "content": "a"}]}])
    with pytest.raises(InvalidText, match="row 10: the model's chat template refuses its messages .*no role system"):
        drawn(chatting, path)
    assert drawn(chatting, path, skip_invalid=True).skipped == 1


@pytest.mark.parametrize("start", ["", "\n", "  \n"])
def test_a_template_that_begins_with_blanks_begins_a_document_once_all_the_same(start, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{{ '" + start.replace("\n", "\\n") + "' }}" + TEMPLATE)
    tokenizer = open_tokenizer(folder)
    ids = drawn(tokenizer, written(tmp_path, [{"messages": CHAT}] * 9)).ids[0]
    assert tokenizer.decode(ids).startswith(f"{tokenizer.bos_token}<user>Hello?<assistant>Hi.{tokenizer.bos_token}")


def test_a_bos_inside_a_text_stays(chatting):
    inside = [{"role": "user", "content": f"a{chatting.bos_token}b"}]
    assert renderer(chatting)(inside) == f"<user>a{chatting.bos_token}b"


def test_a_template_that_is_no_jinja_is_named_and_not_the_row(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m }")
    path = written(tmp_path, [{"messages": CHAT}])
    for skip in (False, True):
        with pytest.raises(UserError, match="chat template cannot be read .* in line 2.* Correct chat_template.jinja"):
            drawn(open_tokenizer(folder), path, skip_invalid=skip)


JSON_TEXTS = [CHAT, [{"from": "human", "value": "a"}]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("value", JSON_TEXTS)
def test_messages_as_one_string_of_json_are_refused(value, kind, tmp_path):
    path = written(tmp_path, [{"messages": json.dumps(value)}], kind)
    with pytest.raises(InvalidText, match="row 1: field 'messages' is text that holds the JSON of a list of messages"):
        read(path, "messages")


@pytest.mark.parametrize("text", ['[{"a": 1}]', '[{"role": "user"', "[{}]", '{"role": "user"}'])
def test_other_text_that_looks_like_json_is_text(text, tmp_path):
    assert read(written(tmp_path, [{"text": text}])) == [text]


def test_a_call_of_a_tool_has_no_content(chatting, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": ["f(x)"]}
    path = written(tmp_path, [{"messages": [CHAT[0], call]}] * 9)
    assert "<assistant>f(x)" in chatting.decode(drawn(chatting, path).ids[0])


def test_messages_without_a_template_are_refused(tmp_path):
    path = written(tmp_path, [{"messages": CHAT}])
    with pytest.raises(UserError, match="rows.jsonl: rows hold messages, but the tokenizer has no chat template"):
        drawn(open_tokenizer(make_tiny(tmp_path / "tiny")), path)


def test_too_few_documents_after_leaving_rows_out_are_said_with_the_first(tmp_path, chatting):
    path = written(tmp_path, [{"messages": CHAT}, {"messages": None}, {"messages": 3}])
    with pytest.raises(UserError, match=r"from 1 documents.*2 rows were left out; the first: .*row 2: .* is null"):
        drawn(chatting, path, skip_invalid=True, samples=50)


def test_columns_of_a_parquet_file_are_listed(tmp_path):
    path = written(tmp_path, [{"body": "a", "id": 1}], "parquet")
    with pytest.raises(UserError, match="has no column 'text'. Its columns are 'body', 'id'"):
        read(path)
    assert read(path, "body") == ["a"]


def test_rows_of_a_parquet_file_are_named_and_counted(tmp_path):
    path = written(tmp_path, [{"text": "a"}] * 7 + [{"text": None}] + [{"text": "b"}], "parquet")
    with pytest.raises(InvalidText, match="rows.parquet: row 8: field 'text' is null"):
        read(path)
    assert read(path, skip_invalid=True) == ["a"] * 7 + ["b"]


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:8] + b"\xff" * 40 + c[48:]])
def test_a_damaged_parquet_file_is_named(damage, tmp_path):
    path = written(tmp_path, [{"text": "some words " * 50}] * 20, "parquet")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="rows.parquet: cannot be read from row 1 on"):
        read(path)


def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path, [{"text": "a"}], "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read(path)


def test_a_data_set_of_the_hub_is_read_in_the_same_forms(monkeypatch):
    import datasets

    rows = [{"messages": CHAT, "text": "a"}, {"messages": None, "text": None}, {"messages": CHAT[:1], "text": "c"}]
    made = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    whole = open_documents(None, "text", "some/set", skip_invalid=True)
    assert list(whole.read([1, 0])) == ["c", "a"] and whole.skipped == 1
    opened = open_documents(None, "messages", "some/set", render=by_roles)
    assert list(opened.read([2, 0])) == ["<user>Hello?", "<user>Hello?<assistant>Hi."]
    with pytest.raises(InvalidText, match="some/set: row 2: field 'messages' is null"):
        list(opened.read([1]))


def test_every_message_of_a_refusal_can_be_printed():
    with pytest.raises(InvalidText) as caught:
        row_text.value_in("a.jsonl", 1, {"\ud800": 1}, ["text"])
    str(caught.value).encode()


PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
CLOCK = "Today is {{ strftime_now('%d %b %Y %H:%M:%S.%f') }}. {% for m in messages %}{{ m['content'] }}{% endfor %}"
BARREN = {
    "skips these roles": "{% for m in messages %}{% if m['role'] == 'x' %}{{ m['content'] }}{% endif %}{% endfor %}",
    "is a pointer": "version https://git-lfs.github.com/spec/v1",
    "is blank": " ",
}


def with_template(folder, template):
    made = make_tiny(folder / "tiny")
    (made / "chat_template.jinja").write_text(template)
    return open_tokenizer(made)


@pytest.mark.parametrize("content", ["Hello?", [{"type": "text", "text": "Hello?"}]])
def test_a_template_that_reads_parts_gets_parts(content, tmp_path):
    path = written(tmp_path, [{"messages": [{"role": "user", "content": content}]}] * 20)
    tokenizer = with_template(tmp_path, PARTS)
    assert "<user>Hello?" in tokenizer.decode(drawn(tokenizer, path).ids[0])


def test_a_template_that_asks_the_clock_gives_the_same_text_each_time(tmp_path):
    tokenizer, path = with_template(tmp_path, CLOCK), written(tmp_path, [{"messages": CHAT}] * 9)
    assert drawn(tokenizer, path) == drawn(tokenizer, path)
    assert "Today is 01 Jan 2025 00:00:00.000000" in tokenizer.decode(drawn(tokenizer, path).ids[0])


def test_a_template_that_asks_the_clock_otherwise_is_refused(tmp_path):
    tokenizer = with_template(tmp_path, "{% set f = '%d' %}{{ strftime_now(f) }}{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="rows.jsonl: the tokenizer's chat template asks the clock"):
        drawn(tokenizer, written(tmp_path, [{"messages": CHAT}] * 9))


@pytest.mark.parametrize("case", BARREN)
def test_a_template_that_drops_every_message_is_refused(case, tmp_path):
    tokenizer, path = with_template(tmp_path, BARREN[case]), written(tmp_path, [{"messages": CHAT}] * 9)
    with pytest.raises(InvalidText, match="row 1: what the model's chat template makes .* holds none of their content"):
        drawn(tokenizer, path)


def test_a_template_may_leave_out_a_part(tmp_path):
    shorter = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    chat = [CHAT[0], {"role": "assistant", "content": "<think>well</think>Hi."}]
    tokenizer = with_template(tmp_path, shorter)
    assert "well" not in tokenizer.decode(drawn(tokenizer, written(tmp_path, [{"messages": chat}] * 30)).ids[0])


def test_keys_that_a_table_adds_to_a_row_are_not_there(tmp_path):
    """A column has one type, so each row has the keys of all rows, and null in them."""
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": 2}}]
    rows = [{"messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}]} for call in calls]
    said = []
    read(written(tmp_path, rows, "parquet"), "messages", render=lambda messages: said.append(messages) or "Hello?")
    assert [messages[1]["tool_calls"][0]["arguments"] for messages in said[:2]] == [{"a": 1}, {"b": 2}]


def test_a_column_of_pairs_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([[("a", "b")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    with pytest.raises(InvalidText, match="is a list of a pair"):
        read(tmp_path / "rows.parquet")


def test_a_template_that_draws_at_random_is_refused(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{{ ['a', 'b'] | random }}" + TEMPLATE)
    with pytest.raises(UserError, match="chat template draws at random"):
        drawn(open_tokenizer(folder), written(tmp_path, [{"messages": CHAT}] * 9))


@pytest.mark.parametrize("filtered", ["upper", "tojson", "title"])
def test_a_template_may_write_the_content_otherwise(filtered, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | FILTER }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template.replace("FILTER", filtered))
    tokenizer = open_tokenizer(folder)
    assert "<assistant>" in tokenizer.decode(drawn(tokenizer, written(tmp_path, [{"messages": CHAT}] * 9)).ids[0])


def test_a_role_that_is_no_text_is_said_to_be_so(tmp_path):
    with pytest.raises(InvalidText, match="message 1: role is a number, not text"):
        read(written(tmp_path, [{"messages": [{"role": 1, "content": "a"}]}]), "messages")


@pytest.mark.parametrize(("value", "kind"), [(b"abc", "bytes"), (datetime.date(2020, 1, 1), "a date")])
def test_columns_of_other_types_are_named(value, kind, tmp_path):
    with pytest.raises(InvalidText, match=f"field 'text' is {kind}, not text"):
        read(written(tmp_path, [{"text": value}], "parquet"))
