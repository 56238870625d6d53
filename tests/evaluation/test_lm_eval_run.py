"""lm-eval's scores of the tiny model against log-probabilities summed by hand."""

import gzip
import json
import shutil

import pytest
import torch
from tiny_project import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergemoe.errors import UserError
from mergemoe.evaluation.lm_eval_run import score_task
from mergemoe.evaluation.lm_eval_tasks import open_task


@pytest.fixture
def run(tiny, monkeypatch):
    """Score the tiny model on a task of data/blimp."""
    monkeypatch.chdir(ROOT)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)

    def scored(task, limit):
        with open_task(task, "data/blimp", {}, 0) as found:
            return score_task(model, tokenizer, found, fewshot=0, limit=limit, batch_size=8)

    return scored, model, tokenizer


def by_hand(model, tokenizer, limit):
    """Return the share of pairs of `causative` whose good sentence is likelier, after token 0 and a space."""
    with gzip.open(ROOT / "data" / "blimp" / "causative.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for line in file][:limit]

    def logp(sentence):
        ids = torch.tensor([0, *tokenizer.encode(" " + sentence, add_special_tokens=False)])
        with torch.no_grad():
            scores = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
        return float(scores.gather(1, ids[1:, None]).sum())

    right = [logp(pair["sentence_good"]) > logp(pair["sentence_bad"]) for pair in pairs]
    return sum(right) / len(right)


def test_a_group_is_the_mean_of_its_parts(run):
    scored, model, tokenizer = run
    found = scored("blimp", 3)
    assert (found["samples"], found["shots"], len(found["parts"])) == (36, [0], 12)
    for part in found["parts"].values():
        assert set(part) == {"acc", "acc_stderr", "samples"}
        assert part["samples"] == 3
    mean = sum(part["acc"] for part in found["parts"].values()) / 12
    assert found["scores"]["acc"] == pytest.approx(mean)
    assert found["parts"]["blimp_causative"]["acc"] == pytest.approx(by_hand(model, tokenizer, 3))


def test_a_single_task_has_no_parts_and_the_share_counted_by_hand(run):
    scored, model, tokenizer = run
    found = scored("blimp_causative", 40)
    expected = by_hand(model, tokenizer, 40)
    assert 0 < expected < 1
    assert (found["samples"], found["parts"]) == (40, {})
    assert found["scores"]["acc"] == pytest.approx(expected)
    assert found["scores"]["acc_stderr"] == pytest.approx((expected * (1 - expected) / 39) ** 0.5)


def test_a_token_without_a_row_is_named_with_its_task(run):
    scored, model, tokenizer = run
    tokenizer.add_tokens(["Tonya"])
    with pytest.raises(
        UserError, match=r"^evaluate.tasks.blimp_causative.include: .* gives the token 4096 \('Tonya'\).* 4096 rows"
    ):
        scored("blimp_causative", 40)
    assert not model.get_input_embeddings()._forward_pre_hooks


def test_a_tokenizer_without_a_token_to_pad_with_scores_the_same(run):
    scored, _, tokenizer = run
    expected = scored("blimp_causative", 20)["scores"]
    tokenizer.pad_token = None
    assert scored("blimp_causative", 20)["scores"] == expected


@pytest.mark.parametrize("kind", ["a tag", "a group that aggregates nothing"])
def test_what_lm_eval_gives_no_mean_of_has_ours(kind, run, tmp_path):
    scored, model, tokenizer = run
    names = ("causative", "adjunct_island")
    shutil.copyfile(ROOT / "data/blimp/_template_yaml", tmp_path / "_template_yaml")
    for name in names:
        text = (ROOT / "data/blimp" / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text + ("\ntag: mine\n" if kind == "a tag" else ""))
    if kind != "a tag":
        (tmp_path / "mine.yaml").write_text(f"group: mine\ntask: [{', '.join(f'blimp_{name}' for name in names)}]\n")
    with open_task("mine", str(tmp_path), {}, 0) as found:
        whole = score_task(model, tokenizer, found, fewshot=0, limit=10, batch_size=8)
    each = [scored(f"blimp_{name}", 10)["scores"]["acc"] for name in names]
    assert whole["scores"]["acc"] == pytest.approx(sum(each) / 2) and len(whole["parts"]) == 2
