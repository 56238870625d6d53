"""Generated texts: each is refused by name, or its documents and tokens are those of a plain reading."""

import gzip
import io
import json
import random
from collections import Counter

import chance
import pytest
from hypothesis import strategies as st

from mergemoe.calibration import documents, token_sequences

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

END = "<|endoftext|>"
BOMB = gzip.compress(bytes(30_000_000), 1, mtime=0)
ODD = [
    "",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "\ufeff",
    "\u2028",
    "\x85",
    "\ud83d",
    "a\nb",
    END,
    f"\n{END}\n",
    "é",
    "x" * 70_000,
]
texts = st.sampled_from(ODD) | st.text(max_size=12)
whole = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(texts, one, max_size=3),
)
fields = st.fixed_dictionaries({"text": texts}) | st.fixed_dictionaries({"text": texts, "more": whole})
rows = st.one_of(
    *[fields.map(json.dumps)] * 4, st.sampled_from(["", " ", "{", "[]", "1" * 5000, "[" * 9999, '{"text": 1}'])
)
rows |= whole.map(json.dumps) | st.dictionaries(st.just("text") | texts, whole, max_size=2).map(json.dumps)


@st.composite
def files(draw):
    """Draw a name and the bytes of a text; most are valid."""
    lines = draw(st.lists(rows if (kind := draw(st.sampled_from(["jsonl", "txt"]))) == "jsonl" else texts, max_size=8))
    if kind == "txt":
        lines = [one for line in lines for one in (line, END) if draw(st.integers(0, 3))]
    content = draw(st.sampled_from(["\n", "\n", "\r\n"])).join(lines).encode("utf-8", "surrogatepass")
    content += draw(st.sampled_from([b"", b"\n", b"\n", b"\xff", b"\n\n\0"]))
    content = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"])) + content
    if not draw(st.booleans()):
        return f"text.{kind}", content
    packed = gzip.compress(content, mtime=0)
    how = draw(st.sampled_from(["", "", "", "cut", "flip", "bomb", "twice", "plain", "tail"]))
    at = draw(st.integers(0, len(packed) - 1))
    made = {
        "cut": lambda: packed[:at],
        "flip": lambda: packed[:at] + bytes([packed[at] ^ 1 << at % 8]) + packed[at + 1 :],
        "bomb": lambda: BOMB,
        "twice": lambda: packed + packed,
        "plain": lambda: content,
        "tail": lambda: packed + b"\0\0x",
    }
    return f"text.{kind}.gz", made.get(how, lambda: packed)()


def plainly(name, content):
    """Read a text whole, as the documentation says it; None if it is not valid."""
    if name.endswith(".gz"):
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read()
    lines = [line.removesuffix("\r") if ended else line for line, ended in split(content.decode("utf-8-sig"))]
    if ".jsonl" in name:
        return [json.loads(line)["text"] for line in lines if line.strip()]
    found = [[]]
    for line in lines:
        found.append([]) if line == END else found[-1].append(line)
    *before, last = ["\n".join(one) for one in found]
    return [text for text in (*before, last.rstrip("\n")) if text]


def split(text):
    *ended, last = text.split("\n")
    return [*((line, True) for line in ended), *([(last, False)] if last else [])]


def encode(text):
    return [1 + byte for byte in text.encode()]


def drawn(name, path, pack):
    read = documents.open_documents(str(path), "text")
    made = token_sequences.draw_sequences(read, encode, 0, samples=2, length=5, seed=3, pack=pack)
    return list(read.read(range(read.count))), made.ids


def expected(found, pack):
    order = list(range(len(found)))
    random.Random(3).shuffle(order)
    each = [[0, *encode(found[i])] for i in order]
    if pack:
        stream = sum(each, [])
        return [stream[:5], stream[5:10]]
    return [(row + [0] * 5)[:5] for row in each if len(row) > 1][:2]


def test_every_text_is_refused_by_name_or_read_as_it_stands(tmp_path):
    counts, wrong = Counter(), {}

    def check(one):
        name, content = one
        path = tmp_path / name
        path.write_bytes(content)
        for pack in (True, False):
            seen, found = chance.outcome(lambda: drawn(name, path, pack), seconds=10)  # noqa: B023
            if seen == "refused":
                why = chance.unclear(str(found)) or (None if str(path) in str(found) else "it names no file")
                seen = f"unclear: {why}" if why else seen
            elif seen == "read":
                try:
                    right = plainly(name, content)
                    seen = seen if found == (right, expected(right, pack)) else "wrong"
                except Exception as error:
                    seen = f"taken, though {type(error).__name__}"
            counts[seen] += 1
            if seen not in {"refused", "read"}:
                wrong.setdefault(seen, f"{name} {content[:200]!r} {str(found)[:200]} {chance.traced(found)}")

    chance.examples("generated texts", files(), check)
    chance.tell("generated texts", counts)
    if wrong:
        pytest.fail("\n".join(f"{seen}: {one}" for seen, one in list(wrong.items())[:20]), pytrace=False)
