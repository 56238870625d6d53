"""Folded routers against a regularized fit in numpy."""

import numpy as np
import pytest
import torch

from mergemoe.merging.router_folding import PENALTY, SATURATED, folded_router, group_logit
from mergemoe.moe.problem import groups_of
from mergemoe.moe.router_rule import Router, Rule
from mergemoe.moe.tokens import Tokens

EXPERT_MAP, USAGE = [0, 0, 1, 2, 1, 3], [5, 1, 2, 3, 6, 4]
SHARES = [[5 / 6, 1 / 6, 0, 0, 0, 0], [0, 0, 2 / 8, 0, 6 / 8, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]


def layer(scores, tokens=300, scale=1.0, seed=0, biased=False):
    """A router of 6 rows of 7 numbers, its groups and the logits of some tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    hidden = scale * torch.randn(tokens, 7, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64) if biased else None
    router = Router(Rule(scores, top_k=2, normalized=True), rows, bias)
    empty = torch.zeros(tokens, 0)
    return router, groups_of(EXPERT_MAP, USAGE), Tokens(hidden, empty, empty, hidden @ rows.T)


def group_logits(scores, logits):
    """The logit of each group written out; a group of one expert keeps the expert's."""
    columns = []
    for number in range(4):
        own = logits[:, [e for e, group in enumerate(EXPERT_MAP) if group == number]]
        if own.shape[1] == 1:
            columns.append(own[:, 0])
        elif scores == "softmax":
            columns.append(np.log(np.exp(own).sum(1)))
        else:
            total = np.minimum((1 / (1 + np.exp(-own))).sum(1), SATURATED)
            columns.append(np.log(total / (1 - total)))
    return np.stack(columns, 1)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_rows_are_the_regularized_fit_to_the_logits_of_the_groups(scores):
    router, groups, tokens = layer(scores)
    logits, start = tokens.logits.numpy(), np.array(SHARES)
    damping = PENALTY * np.square(logits).sum(0).mean()
    design = np.concatenate([logits, np.sqrt(damping) * np.eye(6)])
    target = np.concatenate([group_logits(scores, logits), np.sqrt(damping) * start.T])
    combined = np.linalg.lstsq(design, target, rcond=None)[0].T
    found = folded_router(router, groups, [tokens])
    np.testing.assert_allclose(found.rows.numpy(), combined @ router.rows.numpy(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.rows[2:].numpy(), router.rows[[3, 5]].numpy(), atol=1e-9)  # groups of one
    assert found.rule == router.rule and found.bias is None


def test_batches_of_tokens_add_up():
    router, groups, tokens = layer("softmax")
    parts = [Tokens(*rows) for rows in zip(*(part.split(41) for part in vars(tokens).values()), strict=True)]
    assert len(parts) == 8
    expected = folded_router(router, groups, [tokens]).rows
    torch.testing.assert_close(folded_router(router, groups, parts).rows, expected, rtol=1e-10, atol=1e-12)


def test_the_bias_of_the_choice_is_the_usage_weighted_mean():
    router, groups, tokens = layer("sigmoid", biased=True)
    found = folded_router(router, groups, [tokens])
    np.testing.assert_allclose(found.bias.numpy(), np.array(SHARES) @ router.bias.numpy(), rtol=1e-14)


def test_without_tokens_or_logits_a_row_is_the_usage_weighted_mean():
    router, groups, silent = layer("softmax", scale=0.0)
    expected = np.array(SHARES) @ router.rows.numpy()
    np.testing.assert_allclose(folded_router(router, groups, []).rows.numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(folded_router(router, groups, [silent]).rows.numpy(), expected, rtol=1e-14)


def test_the_dtypes_of_the_router_stay():
    router, groups, tokens = layer("sigmoid", biased=True)
    stored = Router(router.rule, router.rows.bfloat16(), router.bias.float())
    found = folded_router(stored, groups, [tokens])
    assert (found.rows.dtype, found.bias.dtype) == (torch.bfloat16, torch.float32)


def test_groups_keep_the_share_of_a_softmax_that_their_members_had():
    _, _, tokens = layer("softmax")
    scores = tokens.logits.softmax(1)
    inside = [[e for e, group in enumerate(EXPERT_MAP) if group == number] for number in range(4)]
    found = torch.stack([group_logit(tokens.logits[:, own], "softmax") for own in inside], 1).softmax(1)
    torch.testing.assert_close(found, torch.stack([scores[:, own].sum(1) for own in inside], 1))


def test_sigmoids_of_members_add_up_to_one_that_does_not_saturate():
    logits = torch.tensor([[0.0, -1.0], [9.0, 9.0]], dtype=torch.float64)
    found = group_logit(logits, "sigmoid").sigmoid()
    torch.testing.assert_close(found, torch.tensor([0.5 + 1 / (1 + np.e), 0.999], dtype=torch.float64))


@pytest.mark.parametrize("low", [-1.0, -30.0, -200.0, -745.0, -1e3, -1e6])
def test_the_logit_of_a_group_that_no_token_would_choose_is_a_number(low):
    """Far below zero a sigmoid is the exponential of its logit, and in float64 it is 0 from -745 on."""
    logits = torch.tensor([[low, low - 1.0], [low - 2.0, low]], dtype=torch.float64)
    found = group_logit(logits, "sigmoid")
    if low > -700:
        total = logits.sigmoid().sum(1)
        torch.testing.assert_close(found, total.log() - (-total).log1p(), rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(found, logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    assert found.isfinite().all()
