"""Scores on held-out text against torch's own losses and slow loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from mergemoe.evaluation.fidelity import language_scores


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False)
    head.weight.data = torch.randn(11, 8, generator=generator)
    hidden = torch.randn(3, 7, 8, generator=generator)
    full = hidden + 0.5 * torch.randn(3, 7, 8, generator=generator)
    ids = torch.randint(0, 11, (3, 7), generator=generator, dtype=torch.int32)
    mask = torch.ones(3, 7, dtype=torch.uint8)
    mask[1, 4:] = 0
    return head, hidden, ids, mask, full


def scored(case):
    head, hidden, ids, mask, full = case
    return language_scores(head, hidden, ids, mask, "cpu", full)


def real_tokens(case):
    """Per sequence: log-probabilities of the compressed and the full model, and the next tokens."""
    head, hidden, ids, _, full = case
    with torch.no_grad():
        for row, length in enumerate((7, 4, 7)):
            mine, theirs = (head(h[row, : length - 1]).double().log_softmax(-1) for h in (hidden, full))
            yield mine, theirs, ids[row, 1:length].long()


def ratio_error(totals, counts):
    totals, counts = np.array(totals), np.array(counts)
    residual = totals - totals.sum() / counts.sum() * counts
    return np.sqrt((residual**2).sum() * len(counts) / (len(counts) - 1)) / counts.sum()


def test_perplexity_is_exp_of_the_cross_entropy_of_real_next_tokens(case):
    mine, _, targets = (torch.cat(parts) for parts in zip(*real_tokens(case), strict=True))
    assert len(targets) == 15
    assert scored(case)["perplexity"] == pytest.approx(float(functional.cross_entropy(mine, targets).exp()), rel=1e-5)


def test_kl_is_that_of_the_full_model_to_the_compressed_one(case):
    mine, full, _ = (torch.cat(parts) for parts in zip(*real_tokens(case), strict=True))
    right = float(functional.kl_div(mine, full, reduction="batchmean", log_target=True))
    reverse = float(functional.kl_div(full, mine, reduction="batchmean", log_target=True))
    assert abs(right - reverse) > 0.01 * right
    assert scored(case)["kl"] == pytest.approx(right, rel=1e-5)


def test_top1_is_the_share_of_equal_first_tokens(case):
    same = [
        int(a.argmax() == b.argmax()) for mine, full, _ in real_tokens(case) for a, b in zip(mine, full, strict=True)
    ]
    assert 0 < sum(same) < len(same)
    assert scored(case)["top1"] == pytest.approx(sum(same) / len(same))


def test_standard_errors_take_sequences_as_units(case):
    scores, rows = scored(case), list(real_tokens(case))
    counts = [len(targets) for *_, targets in rows]
    nll = [float(functional.cross_entropy(mine, targets, reduction="sum")) for mine, _, targets in rows]
    kl = [float(functional.kl_div(mine, full, reduction="sum", log_target=True)) for mine, full, _ in rows]
    top1 = [float((mine.argmax(-1) == full.argmax(-1)).sum()) for mine, full, _ in rows]
    assert scores["perplexity_stderr"] / scores["perplexity"] == pytest.approx(ratio_error(nll, counts), rel=1e-4)
    assert scores["kl_stderr"] == pytest.approx(ratio_error(kl, counts), rel=1e-4)
    assert scores["top1_stderr"] == pytest.approx(ratio_error(top1, counts), rel=1e-9)


def test_what_padding_holds_changes_nothing(case):
    head, hidden, ids, mask, full = case
    hidden, ids = hidden.clone(), ids.clone()
    hidden[1, 4:], ids[1, 4:] = 100.0, 5
    assert scored((head, hidden, ids, mask, full)) == scored(case)


def test_a_model_agrees_with_itself(case):
    head, hidden, ids, mask, _ = case
    scores = scored((head, hidden, ids, mask, hidden))
    assert (scores["kl"], scores["top1"]) == (0, 1)
    assert (scores["kl_stderr"], scores["top1_stderr"]) == (0, 0)


def test_without_a_full_model_there_is_perplexity_alone(case):
    assert set(language_scores(*case[:4])) == {"perplexity", "perplexity_stderr"}
