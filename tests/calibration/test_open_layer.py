"""A layer opened from files: its experts, its tokens, and the problem that methods get."""

import pytest
import torch

from mergemoe.calibration.open_layer import OpenLayer, open_layer
from mergemoe.checkpoints.expert_weights import layer_entry, read_experts
from mergemoe.errors import ArtifactError
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import groups_of

CPU = torch.device("cpu")


def test_an_open_layer_holds_what_the_files_hold(described, captured):
    stored = read_experts(described, 1)
    with open_layer(described, 1, captured[1], CPU) as opened:
        assert opened.entry == layer_entry(described, 1) and opened.act == Activation("silu")
        for role, matrices in stored.roles().items():
            assert torch.equal(opened.experts.roles()[role], matrices)
        problem = opened.problem()
        assert problem.reader is opened.reader and problem.groups == [] and problem.changed is None
        for role, matrices in stored.roles().items():
            assert torch.equal(problem.experts.roles()[role], matrices.float())
        assert opened.reader.count() > 0


def test_in_float32_the_problem_shares_the_experts(described, captured):
    with open_layer(described, 1, captured[1], CPU, torch.float32) as opened:
        assert opened.problem().experts.up.data_ptr() == opened.experts.up.data_ptr()


def test_a_layer_in_memory_is_the_same_problem(described, reader):
    groups = groups_of([0, 0, 1, 1, 2, 2, 3, 3], [1] * 8)
    layer = OpenLayer(layer_entry(described, 1), read_experts(described, 1), reader)
    assert layer.problem(groups).groups == groups and layer.problem(groups).act == layer.act


def test_the_activations_of_another_layer_are_refused(described, captured):
    with pytest.raises(ArtifactError, match="belongs to layer 2, not 1"), open_layer(described, 1, captured[2], CPU):
        pass
