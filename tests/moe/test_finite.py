"""What exceeds a dtype's range is refused where it appears, whatever the method."""

import problems
import pytest
import torch

from mergemoe.errors import UserError
from mergemoe.grouping.cluster import mean_outputs
from mergemoe.merging.solve import solve
from mergemoe.moe.problem import Merged
from mergemoe.moe.solved import output_error, solved_tensors


@pytest.fixture
def problem():
    return problems.problem()


def larger(problem, factor):
    for tokens in problem.reader.parts.values():
        tokens.hidden.mul_(factor)
    return problem


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("mergemoe", {"ridge": 0.0}),
        ("routed", {"ridge": 0.1, "features": "usage", "width": 1.0, "width_multiple": 8}),
    ],
)
def test_outputs_beyond_float32_are_refused_by_every_method(method, options, problem):
    reader = larger(problem, 1e30).reader
    for part in reader.parts:
        tokens = reader.parts[part]
        reader.parts[part] = type(tokens)(*(x.float() if x.is_floating_point() else x for x in vars(tokens).values()))
    with pytest.raises(UserError, match="are NaN or infinite.*leave this layer out"):
        solve(problem.experts, [0, 0, 1, 2, 1, 3], [1] * 6, reader, problem.act, method=method, **options)


def test_mean_outputs_and_an_error_that_are_no_numbers_are_refused(problem):
    larger(problem, float("inf"))
    with pytest.raises(UserError, match="mean outputs of experts are NaN"):
        mean_outputs(problem)
    with pytest.raises(UserError, match="outputs of the layer are NaN"):
        output_error(
            problem.experts, problem.experts, problem.routing_weights, problem.reader, problem.act, heldout=False
        )


def test_merged_weights_beyond_the_stored_dtype_are_refused(problem):
    group = problem.merged_groups[0]
    merged = problem.experts[group.members[:1]].map(lambda part: part * 1e5)
    half = problem.experts.map(lambda part: part.to(torch.float16))
    assert solved_tensors(problem.experts, [0, 0, 1, 2, 1, 3], [Merged(group, merged, {})])
    with pytest.raises(
        UserError, match=r"matrices of merged experts reach .*e\+05, beyond the range of float16.*`ridge`"
    ):
        solved_tensors(half, [0, 0, 1, 2, 1, 3], [Merged(group, merged, {})])
    merged.down[0, 0] = float("nan")
    with pytest.raises(UserError, match="down matrices of merged experts are NaN or infinite"):
        solved_tensors(problem.experts, [0, 0, 1, 2, 1, 3], [Merged(group, merged, {})])
