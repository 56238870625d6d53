"""Greedy continuations: what counts as a loop, and the stage against decoding token by token without a cache."""

import importlib
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import ROOT, make_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergemoe.artifacts import digests, store
from mergemoe.errors import UserError
from mergemoe.evaluation import generation
from mergemoe.workflow.config.params import Text

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([7] * 24, True),
        ([7] * 23, False),
        ([1, 2, 3, *[7, 8] * 12], True),
        ([*[7, 8] * 12, 1], False),  # it left the loop
        ([*range(9)] * 3, True),
        ([*range(9)] * 2 + [0, 1, 2, 3, 4, 5], False),  # 24 tokens, but not three turns
        ([*range(12)] * 3, True),
        ([*range(13)] * 4, False),  # the unit is too long
        ([*[1, 2, 3, 4, 5] * 5, 1, 2], True),  # breaks off within the unit
        ([], False),
    ],
)
def test_a_loop_is_a_short_unit_repeated_to_the_end(text, expected):
    assert generation.ends_in_loop(text) is expected


def loops_slowly(text):
    """Whether any end of the text, 24 tokens or more, is the text's last u tokens written three times or more."""
    for u in range(1, 13):
        for n in range(max(24, 3 * u), len(text) + 1):
            if all(text[-1 - i] == text[-1 - i % u] for i in range(n)):
                return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=5),
    st.lists(st.integers(0, 2), min_size=1, max_size=14),
    st.integers(0, 40),
    st.lists(st.integers(0, 2), max_size=1),
)
def test_loops_are_those_of_the_slow_definition(before, unit, length, after):
    text = before + (unit * 40)[:length] + after
    assert generation.ends_in_loop(text) == loops_slowly(text)


def test_distinct_is_the_share_of_distinct_n_grams():
    assert [generation.distinct_share([1, 2, 3, 4], n) for n in (1, 2, 3)] == [1, 1, 1]
    assert [generation.distinct_share([1, 2, 1, 2, 1], n) for n in (1, 2, 3)] == [2 / 5, 2 / 4, 2 / 3]
    assert [generation.distinct_share([5] * 11, n) for n in (1, 2, 3)] == [1 / 11, 1 / 10, 1 / 9]
    assert [generation.distinct_share([5], n) for n in (1, 2, 3)] == [1, 1, 1]
    assert generation.distinct_share([], 1) == 1


@given(st.lists(st.integers(0, 3), min_size=3, max_size=30), st.integers(1, 3))
def test_distinct_counts_every_n_gram_that_is_not_an_earlier_one(text, n):
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    new = [gram not in grams[:i] for i, gram in enumerate(grams)]
    assert generation.distinct_share(text, n) == sum(new) / len(grams)


def test_scores_are_means_with_standard_errors_and_leave_the_end_token_out():
    scores = generation.continuation_scores([[7] * 24 + [0], [1, 2, 3, 0], [0], [4, 5, 4, 5]], end=0)
    values = {
        "loops": [1, 0, 0, 0],
        "distinct2": [1 / 23, 1, 1, 2 / 3],
        "distinct3": [1 / 22, 1, 1, 1],
        "length": [24, 3, 0, 4],
    }
    for name, each in values.items():
        numbers = torch.tensor(each, dtype=torch.float64)
        assert scores[name] == pytest.approx(float(numbers.mean()))
        assert scores[f"{name}_stderr"] == pytest.approx(float(numbers.std() / 2))


def test_prompts_are_the_beginnings_of_the_first_sequences_that_are_long_enough():
    ids = torch.arange(20, dtype=torch.int32).reshape(4, 5)
    mask = torch.ones(4, 5, dtype=torch.uint8)
    mask[1, 2:] = 0
    assert generation.take_prompts(ids, mask, 2, 3).tolist() == [[0, 1, 2], [10, 11, 12]]
    with pytest.raises(
        UserError, match="4 prompts of 3 tokens are needed, but only 3 of the 4 held-out sequences are long enough"
    ):
        generation.take_prompts(ids, mask, 4, 3)


@torch.no_grad()
def greedy(model, starts, new_tokens, end):
    """Continue token by token, a prompt at a time, each time from the beginning."""
    rows = []
    for start in starts.tolist():
        row = []
        while len(row) < new_tokens and row[-1:] != [end]:
            logits = model(torch.tensor([start + row]), use_cache=False).logits
            row.append(int(logits[0, -1].argmax()))
        rows.append(row)
    return rows


@torch.no_grad()
def plain_perplexity(model, starts, continued):
    losses = []
    for start, row in zip(starts.tolist(), continued, strict=True):
        logits = model(torch.tensor([start + row])).logits[0, len(start) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(row), reduction="none"))
    return math.exp(torch.cat(losses).mean())


def stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


HOW = {"dtype": "float32", "batch_tokens": 96, "threads": 1}
CFG = {**HOW, "generation": {"prompts": 10, "prompt_tokens": 8, "new_tokens": 24}}
JUDGED = ["--layout", "layout.json", "--reference", "reference"]
OTHER = ["--model", "other", "--made", "made.json"]


def run(folder, stage, cfg, *options):
    """Run a stage in a folder."""
    arguments = ["--cfg", json.dumps(cfg), "--code", "0", "--device", "cpu", *map(str, options)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [stage, *arguments])
        importlib.import_module(f"stages.{stage}").main()


def write(path, payload):
    store.write_json(path, payload, {"stage": "test", "params": {}, "inputs": {}, "code": ""})


@pytest.fixture(scope="module")
def work(tiny, tmp_path_factory):
    """A folder of artifacts: `full.json` is the tiny model's own, `other.json` that of a model which it judges."""
    folder = tmp_path_factory.mktemp("generation")
    source = str(ROOT / "data/heldout/mixed.jsonl.gz")
    text = Text(source=source, samples=10, length=16).model_dump()
    other = make_tiny(folder / "other", initializer_range=0.3)
    ours = {"do_sample": True, "repetition_penalty": 3.0, "eos_token_id": list(range(4096)), "max_length": 9}
    (other / "generation_config.json").write_text(json.dumps(ours))
    write(folder / "made.json", {"files": {path.name: digests.sha256(path) for path in other.iterdir()}})
    run(folder, "layout", {"path": str(tiny)}, "--out", "layout.json")
    run(folder, "reference", {**HOW, "heldout": text}, *JUDGED[:2], "--text", source, "--out", "reference")
    run(folder, "generate", CFG, *JUDGED, "--model", tiny, "--made", "layout.json", "--out", "full.json")
    for out in ("other.json", "again/other.json"):
        run(folder, "generate", CFG, *JUDGED, *OTHER, "--out", out)
    return folder


@pytest.mark.parametrize("subject", ["full", "other"])
def test_the_stage_writes_what_decoding_token_by_token_gives(work, tiny, subject):
    found = store.read_json(work / f"{subject}.json")
    starts = store.read_tensors(work / "reference/final.safetensors")["input_ids"][:, :8]
    full, tokenizer = stock(tiny), AutoTokenizer.from_pretrained(tiny)
    rows = greedy(full if subject == "full" else stock(work / "other"), starts, 24, tokenizer.eos_token_id)
    texts = [(tokenizer.decode(start), tokenizer.decode(row)) for start, row in zip(starts, rows, strict=True)]
    assert [(one["prompt"], one["text"]) for one in found["continuations"]] == texts[:8]
    assert (found["task"], found["samples"]) == ("generation", 10)
    scores = generation.continuation_scores(rows, tokenizer.eos_token_id)
    assert {name: found["scores"][name] for name in scores} == scores
    assert found["scores"].keys() - scores.keys() == {"perplexity", "perplexity_stderr"}
    assert found["scores"]["perplexity"] == pytest.approx(plain_perplexity(full, starts, rows), rel=1e-5)


def test_the_same_inputs_give_the_same_bytes(work):
    assert (work / "other.json").read_bytes() == (work / "again/other.json").read_bytes()


def test_a_continuation_stops_at_its_end_token_whatever_the_others_of_its_batch_do(work, tiny):
    model = stock(tiny)
    starts = store.read_tensors(work / "reference/final.safetensors")["input_ids"][:, :8]
    end = greedy(model, starts[:1], 5, None)[0][4]
    rows = greedy(model, starts, 24, end)
    assert len({len(row) for row in rows}) > 1
    assert generation.greedy_continuations(model, starts, 24, end, 10_000, CPU) == rows
    found = generation.continuation_perplexity(model, starts, rows, 10_000, CPU)
    assert found["perplexity"] == pytest.approx(plain_perplexity(model, starts, rows), rel=1e-5)


def test_without_an_end_token_no_token_ends_a_continuation_or_is_taken_for_padding(work, tiny):
    model = stock(tiny)
    starts = store.read_tensors(work / "reference/final.safetensors")["input_ids"][:2, :8]
    starts = torch.cat([starts, torch.zeros(2, 1, dtype=torch.int32)], 1)
    assert generation.greedy_continuations(model, starts, 24, None, 10_000, CPU) == greedy(model, starts, 24, None)


def test_a_full_checkpoint_that_changed_is_refused(work, tiny, tmp_path):
    changed = shutil.copytree(tiny, tmp_path / "changed")
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    layout = store.read_json(work / "layout.json")
    write(tmp_path / "layout.json", {"path": str(changed), "files": layout["files"]})
    with pytest.raises(UserError, match="config.json is not the file that was recorded"):
        run(work, "generate", CFG, *JUDGED, *OTHER, "--layout", tmp_path / "layout.json", "--out", "refused.json")
    assert not (work / "refused.json").exists()
