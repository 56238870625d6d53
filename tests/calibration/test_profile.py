"""The profile of a layer against loops over its tokens in numpy."""

import math

import numpy as np
import problems
import pytest
import torch

from mergemoe.calibration.profile import profile_layer
from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.moe.expert_forward import Activation, output
from mergemoe.moe.tokens import Tokens

SILU = Activation("silu")


def profile_of(problem):
    problem.reader.top_k = problem.reader.parts[False].index.shape[1]
    return profile_layer(problem.reader, problem.experts, problem.act)


def test_the_profile_is_what_a_loop_over_captured_tokens_counts(described, reader):
    experts = read_experts(described, 1).map(lambda m: m.float())
    found = profile_layer(reader, experts, SILU)
    chosen = {expert: [] for expert in range(8)}
    logits = []
    for chunk in reader.chunks():
        logits.append(chunk.logits.double())
        for x, index, weight in zip(chunk.hidden, chunk.index.tolist(), chunk.weight.tolist(), strict=True):
            for expert, g in zip(index, weight, strict=True):
                chosen[expert].append((g, g * float(output(x[None], experts, expert, SILU).norm())))
    assert found["usage"] == [len(chosen[expert]) for expert in range(8)]
    assert sum(found["usage"]) == 3 * reader.count()
    for expert, choices in chosen.items():
        assert found["mean_weight"][expert] == pytest.approx(np.mean([g for g, _ in choices]), rel=1e-6)
        assert found["saliency"][expert] == pytest.approx(np.mean([s for _, s in choices]), rel=1e-5)
    columns = torch.cat(logits).numpy()
    columns = columns / np.linalg.norm(columns, axis=0)
    np.testing.assert_allclose(found["router_similarity"], columns.T @ columns, atol=1e-9)


@pytest.mark.parametrize("case", problems.CASES.values(), ids=problems.CASES)
def test_each_figure_is_the_one_written_out_in_float64(case):
    problem = problems.problem(**case)
    found, n = profile_of(problem), len(problem.experts)
    weights, saliencies = [[] for _ in range(n)], [[] for _ in range(n)]
    for x, g in problems.each_token(problem):
        for expert, weight in g.items():
            weights[expert].append(weight)
            y = problems.output(problem.experts, expert, x)
            saliencies[expert].append(weight * math.sqrt(sum(number**2 for number in y.tolist())))
    assert found["usage"] == [len(own) for own in weights]
    np.testing.assert_allclose(found["mean_weight"], [np.mean(own) for own in weights], rtol=1e-12)
    np.testing.assert_allclose(found["saliency"], [np.mean(own) for own in saliencies], rtol=1e-12)
    logits = problem.reader.parts[False].logits.numpy()
    expected = [[a @ b / math.sqrt((a @ a) * (b @ b)) for b in logits.T] for a in logits.T]
    np.testing.assert_allclose(found["router_similarity"], expected, rtol=1e-12)
    assert (found["experts"], found["tokens"]) == (n, len(logits))
    assert found["top_k"] == case.get("top_k", 2)


def test_held_out_tokens_count_for_nothing():
    problem = problems.problem()
    expected = profile_of(problem)
    problem.reader.parts[True] = Tokens(*(part[:0] for part in vars(problem.reader.parts[True]).values()))
    assert profile_of(problem) == expected


def test_a_choice_of_weight_0_counts_for_nothing():
    problem = problems.problem()
    tokens = problem.reader.parts[False]
    before = profile_of(problem)
    expert = int(tokens.index[0, 1])
    tokens.weight[0, 1] = 0
    after = profile_of(problem)
    assert after["usage"][expert] == before["usage"][expert] - 1
    assert [u for e, u in enumerate(after["usage"]) if e != expert] == [
        u for e, u in enumerate(before["usage"]) if e != expert
    ]


def test_an_expert_that_no_token_chose_has_zeros_and_is_like_no_other():
    problem = problems.problem()
    tokens = problem.reader.parts[False]
    tokens.index[tokens.index == 2] = 3
    tokens.logits[:, 2] = 0
    found = profile_of(problem)
    assert (found["usage"][2], found["mean_weight"][2], found["saliency"][2]) == (0, 0.0, 0.0)
    assert found["router_similarity"][2] == [0.0] * 6
