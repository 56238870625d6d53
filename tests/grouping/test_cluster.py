"""Groupings against slow references."""

import numpy as np
import problems
import pytest
import torch

from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.grouping import cluster
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem

SILU = Activation("silu")


def experts_of(*rows):
    """Experts whose up projection is one row and whose gate is zero: similarity is that of the rows."""
    up = torch.tensor(rows, dtype=torch.float32)[:, None, :]
    return Experts(up=up, gate=torch.zeros_like(up), down=up.mT.clone())


def by_weights(experts, usage, kept):
    return cluster.group_experts("weights", kept, Problem(experts, [], None, SILU), {"usage": usage}, 0).expert_map


def test_experts_join_the_most_similar_of_the_most_used():
    experts = experts_of([1, 0], [0.9, 0.1], [0, 1], [-0.1, 1])
    assert by_weights(experts, usage=[9, 1, 0, 7], kept=2) == [0, 0, 1, 1]


def test_ties_in_usage_go_to_the_lower_index():
    experts = experts_of([1, 0], [0, 1], [1, 1], [1, 1])
    assert by_weights(experts, usage=[5, 5, 5, 5], kept=2) == [0, 1, 0, 0]


def test_no_expert_is_like_one_of_zeros():
    experts = experts_of([0, 0], [1, 0], [1, 0.1], [0.1, 1])
    assert by_weights(experts, usage=[9, 8, 1, 1], kept=2) == [0, 1, 1, 1]


def grouped(by, kept, problem, profiled, **options):
    return cluster.group_experts(by, kept, problem, profiled, 5, **options)


def test_the_cost_of_a_grouping_by_similarity_is_how_far_experts_are_from_their_centres():
    similarity = [[1, 0.9, 0.2, 0.1], [0.9, 1, 0.3, 0.8], [0.2, 0.3, 1, 0.7], [0.1, 0.8, 0.7, 1]]
    profiled = {"usage": [1, 9, 7, 2], "router_similarity": similarity}
    found = grouped("router", 2, problems.problem(expert_map=range(4)), profiled)
    assert found.expert_map == [0, 0, 1, 0] and found.cost == pytest.approx(0.1 + 0.2)
    experts = experts_of([1, 0], [3, 4], [0, 1])
    assert grouped("weights", 1, Problem(experts, [], None, SILU), {"usage": [5, 1, 1]}).cost == pytest.approx(0.4 + 1)


def test_the_cost_of_a_grouping_by_outputs_is_the_sum_of_the_distances_joined():
    problem = problems.problem(expert_map=range(6))
    means = cluster.mean_outputs(problem).numpy()
    joined = [float(np.linalg.norm(means[i] - means[j])) for j in range(6) for i in range(j)]
    assert grouped("outputs", 5, problem, {}).cost == pytest.approx(min(joined))
    assert grouped("outputs", 6, problem, {}).cost == 0


@pytest.mark.parametrize("kept", [6, 3, 2])
def test_the_cost_of_a_grouping_by_selection_is_the_sum_of_its_groups_errors(kept):
    problem = problems.problem(expert_map=range(6))
    found = grouped("selection", kept, problem, {})
    costs = [problems.union_cost(problem, members, 5) for members in cluster.members_of(found.expert_map)]
    assert found.cost == pytest.approx(sum(costs), abs=1e-9)


def test_the_cost_of_pruning_is_the_saliency_of_what_is_pruned():
    found = grouped("saliency", 2, problems.problem(expert_map=range(4)), {"saliency": [3.0, 0.5, 0.25, 2.0]})
    assert found == ([0, -1, -1, 1], 0.75)
    assert grouped("none", 4, problems.problem(expert_map=range(4)), {}) == ([0, 1, 2, 3], 0.0)


def test_keeping_all_experts_leaves_them_in_place():
    experts = experts_of([1, 0], [1, 0], [0, 1])
    assert by_weights(experts, usage=[0, 3, 1], kept=3) == [0, 1, 2]


def test_similarity_is_the_cosine_of_concatenated_up_and_gate(described):
    experts = read_experts(described, 1)
    flat = torch.cat([experts.up.flatten(1), experts.gate.flatten(1)], dim=1).double().numpy()
    norms = np.linalg.norm(flat, axis=1)
    expected = flat @ flat.T / norms[:, None] / norms
    np.testing.assert_allclose(cluster.cosine([experts.up, experts.gate]).numpy(), expected, rtol=1e-12)


def test_tokens_of_a_group_are_counted_once_and_weighted(reader):
    expert_map, usage = [0, 0, 1, 1, 1, 0, 2, 2], [3, 1, 4, 1, 5, 9, 2, 6]
    figures = cluster.describe_grouping(cluster.Grouped(expert_map, 1.0), usage, reader)
    tokens = [
        (i, w) for chunk in reader.chunks() for i, w in zip(chunk.index.tolist(), chunk.weight.tolist(), strict=True)
    ]
    for group, described in enumerate(figures["groups"]):
        t = np.array([sum(w for j, w in zip(*token, strict=True) if expert_map[j] == group) for token in tokens])
        assert described["routed_tokens"] == (t > 0).sum()
        assert described["effective_tokens"] == pytest.approx((t**2).sum() ** 2 / (t**4).sum())
        assert described["share"] == pytest.approx(sum(usage[e] for e in described["members"]) / sum(usage))
    assert sorted(e for g in figures["groups"] for e in g["members"]) == list(range(8))
    assert [group["centre"] for group in figures["groups"]] == [5, 4, 7]
    assert figures["fit_tokens"] == len(tokens)
