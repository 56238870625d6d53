"""What a layer loses at other sizes, against the same groups solved by hand."""

from dataclasses import replace

import problems
import pytest
import torch
from problems import compressed

from mergemoe.errors import UserError
from mergemoe.grouping import cluster, curve
from mergemoe.methods import routed
from mergemoe.moe.expert_forward import routed_output
from mergemoe.moe.layer_sizes import measured_sizes
from mergemoe.moe.problem import groups_of


@pytest.mark.parametrize(
    ("experts", "width", "share", "multiple", "step"),
    [
        (16, 128, 0.25, 8, 8),
        (16, 128, 0.5, 32, 32),
        (16, 384, 0.5, 256, 128),
        (24, 96, 0.75, 8, 8),
        (6, 5, 0.4, 32, 1),
        (60, 7, 0.01, 32, 1),
    ],
)
def test_no_size_is_above_its_share_and_none_is_smaller_than_it_must(experts, width, share, multiple, step):
    for m, narrower in measured_sizes(experts, width, share, 0, multiple):
        assert m * narrower <= share * experts * width + 1e-9 and narrower <= width and narrower % step == 0
        assert m * (narrower + step) > share * experts * width


def test_experts_alone_are_measured_at_every_eighth():
    assert measured_sizes(16, 128, None, 96, 32) == [(m, 96) for m in range(2, 17, 2)]
    assert measured_sizes(4, 8, None, 8, 32) == [(m, 8) for m in range(1, 5)]


def test_no_size_needs_larger_groups_than_are_allowed():
    assert measured_sizes(16, 128, None, 128, 32, max_size=3) == [(m, 128) for m in range(6, 17, 2)]
    assert [m for m, _ in measured_sizes(16, 128, 0.25, 0, 8, max_size=2)] == [8, 10, 12, 14, 16]


@pytest.mark.parametrize(
    ("by", "features", "width", "search"),
    [("selection", "selected", 3, "full"), ("selection", "selected", 3, "quick"), ("weights", "usage", 5, "full")],
)
def test_the_error_is_that_of_the_groups_on_held_out_tokens(by, features, width, search):
    problem = problems.problem(expert_map=range(6))
    tokens = problem.reader.parts[True]
    profiled = {"usage": torch.bincount(problem.reader.parts[False].index.flatten(), minlength=6).tolist()}
    (found,) = curve.error_curve(by, [(3, width)], problem, profiled, None, search)
    expert_map = cluster.group_experts(by, 3, problem, profiled, width, search=search).expert_map
    grouped = replace(problem, groups=groups_of(expert_map, profiled["usage"]))
    y = routed_output(tokens.hidden, tokens.index, tokens.weight, problem.experts, problem.act)
    missing = compressed(grouped, routed, {"features": features, "width": width / 5}) - y
    error = float(missing.square().sum() / y.square().sum())
    assert found == {"experts": 3, "width": width, "error": pytest.approx(error, rel=1e-5)}


def test_a_layer_that_keeps_everything_loses_nothing():
    problem = problems.problem(expert_map=range(6))
    (found,) = curve.error_curve("weights", [(6, 5)], problem, {"usage": [6, 5, 4, 3, 2, 1]}, None)
    assert found["error"] < 1e-12


def test_without_held_out_tokens_it_says_what_to_set():
    problem = problems.problem(expert_map=range(6))
    nothing = replace(
        problem, reader=problems.Given(problem.reader.parts[False], problems.draw_tokens(0, 6, 7, 2, None))
    )
    with pytest.raises(UserError, match="`holdout` of `calibrate`"):
        list(curve.error_curve("weights", [(3, 5)], nothing, {"usage": [1] * 6}, None))
