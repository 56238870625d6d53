"""Drawing sequences: known answers on letters, determinism by seed, clear errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_tiny

from mergemoe.calibration import token_sequences
from mergemoe.calibration.documents import Documents
from mergemoe.calibration.token_sequences import draw_sequences, heldout_rows, sequences_from_source
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.errors import UserError

END = 0


def text_of(documents):
    return Documents(
        "corpus.txt", len(documents), sum(map(len, documents)), lambda order: (documents[i] for i in order)
    )


def encode(text):
    return [ord(c) for c in text]


def test_packing_joins_documents_and_loses_no_token_between_rows():
    drawn = draw_sequences(text_of(["abc", "de", "fghi"]), encode, END, samples=3, length=4, seed=0, pack=True)
    order = [entry["document"] for entry in drawn.documents]
    stream = [token for i in order for token in [END, *encode(["abc", "de", "fghi"][i])]]
    assert sum(drawn.ids, []) == stream[:12]
    assert drawn.mask == [[1] * 4] * 3
    assert sum(entry["tokens"] for entry in drawn.documents) == 12


def test_padding_gives_each_document_a_row_and_masks_the_rest():
    drawn = draw_sequences(text_of(["abc", "de"]), encode, END, samples=2, length=5, seed=0, pack=False)
    for row, mask, entry in zip(drawn.ids, drawn.mask, drawn.documents, strict=True):
        text = ["abc", "de"][entry["document"]]
        assert row == [END, *encode(text), *[END] * (4 - len(text))]
        assert mask == [1] * (1 + len(text)) + [0] * (4 - len(text))


def test_the_seed_decides_the_order_and_nothing_else_does():
    documents = [chr(97 + i) * 9 for i in range(20)]
    draws = [
        draw_sequences(text_of(documents), encode, END, samples=5, length=8, seed=seed, pack=True) for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("pack", [True, False])
def test_a_text_too_short_is_named_with_numbers(pack):
    with pytest.raises(
        UserError, match=r"corpus.txt gives (at most )?1 sequences of 4 tokens .* asks for 3: lower `samples`"
    ):
        draw_sequences(text_of(["abcd"]), encode, END, samples=3, length=4, seed=0, pack=pack)


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


def test_a_tokenizer_without_a_token_to_begin_a_document_is_refused(tmp_path):
    class Bare:
        bos_token_id = eos_token_id = None
        name_or_path = "mine"

    with pytest.raises(UserError, match="tokenizer of mine has neither a bos_token nor an eos_token"):
        sequences_from_source(Bare(), 97, samples=1, length=2, seed=0, pack=True, field="text", source="none")


class Letters:
    """A tokenizer of letters that counts the characters it was given."""

    bos_token_id, name_or_path = END, "letters"

    def __init__(self):
        self.given = 0

    def encode(self, text, add_special_tokens):
        self.given += len(text)
        return encode(text)

    def convert_ids_to_tokens(self, token):
        return chr(token)


def test_a_long_document_is_tokenized_as_far_as_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(token_sequences, "PIECE", 100)
    (tmp_path / "a.txt").write_text(text := "".join(chr(97 + i % 26) for i in range(10_000)))
    tokenizer = Letters()
    drawn = sequences_from_source(
        tokenizer, 256, samples=3, length=50, seed=0, pack=True, field="text", source=str(tmp_path / "a.txt")
    )
    assert sum(drawn.ids, []) == [END, *encode(text[:149])]  # as one piece of text would give
    assert tokenizer.given == 200


@pytest.mark.parametrize("pack", [True, False])
def test_empty_documents_before_the_text_do_no_harm_and_nothing_else_is_refused(pack):
    drawn = draw_sequences(text_of([""] * 10 + ["abc"] * 40), encode, END, 5, 4, 0, pack)
    assert len(drawn.ids) == 5
    with pytest.raises(UserError, match="tokenizer of mine makes no token of the documents"):
        draw_sequences(text_of([""] * 50), encode, END, 5, 4, 0, pack, tokenizer="mine")
    with pytest.raises(UserError, match="tokenizer of mine makes no token of the documents"):
        draw_sequences(text_of(["abc"] * 50), lambda _: [], END, 5, 4, 0, pack, tokenizer="mine")


@pytest.mark.parametrize("pack", [True, False])
def test_no_list_is_made_for_samples_that_the_text_cannot_give(pack):
    with pytest.raises(UserError, match="gives at most .* sequences of 4 tokens"):
        draw_sequences(text_of(["abcd"] * 9), encode, END, 10**15, 4, 0, pack)


def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcz")
    drawn = {"samples": 1, "length": 4, "seed": 0, "pack": True, "field": "text", "source": str(tmp_path / "a.txt")}
    largest = max(sequences_from_source(Letters(), 256, **drawn).ids[0])
    sequences_from_source(Letters(), largest + 1, **drawn)
    with pytest.raises(UserError, match=f"gives the token {largest} .*, but the model's embedding has {largest} rows"):
        sequences_from_source(Letters(), largest, **drawn)


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece"])
def test_a_tokenizer_that_raises_is_named_with_the_text(kind, tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": kind, "vocab": {"a": 0}, "unk_token": "[UNK]"}
    if kind == "WordPiece":
        content["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "rows.jsonl").write_text('{"text": "words of a text"}\n' * 9)
    with pytest.raises(UserError, match=r"cannot encode a document that begins with .*words of a text.*UNK"):
        sequences_from_source(
            open_tokenizer(folder),
            4096,
            samples=1,
            length=8,
            seed=0,
            pack=True,
            field="text",
            source=str(tmp_path / "rows.jsonl"),
        )
