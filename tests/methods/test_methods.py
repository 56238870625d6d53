"""What holds for the methods whatever the layer: averages by hand, alignment by brute force, and invariances."""

import itertools
from dataclasses import replace

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import compressed, merge
from scipy.cluster.hierarchy import fcluster, linkage

from mergemoe.grouping import cluster
from mergemoe.merging import averaging
from mergemoe.merging.alignment import aligned_mean, reordered
from mergemoe.methods import average, hcsmoe, joint, mergemoe, msmoe, oracle, routed, select, unsolved, zipit
from mergemoe.moe.problem import groups_of
from mergemoe.moe.tokens import Tokens

METHODS = {
    "average": (average, {}),
    "msmoe": (msmoe, {}),
    "zipit": (zipit, {}),
    "hcsmoe": (hcsmoe, {}),
    "mergemoe": (mergemoe, {}),
    "oracle": (oracle, {}),
    "unsolved, selected": (unsolved, {"features": "selected", "width": 0.6}),
    "routed": (routed, {"ridge": 0.1}),
    "joint": (joint, {"ridge": 0.1}),
    "joint, aligned": (joint, {"features": "aligned", "ridge": 0.1}),
    "joint, zipped": (joint, {"features": "zipped", "ridge": 0.1}),
    "select": (select, {"width": 0.6, "ridge": 0.1}),
}


@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
def test_the_means_are_those_taken_by_hand(biased):
    problem = problems.problem(biased=biased)
    for function, result in ((averaging.plain_mean, average), (averaging.usage_mean, hcsmoe)):
        for group, expert in zip(problem.merged_groups, function(problem, problem.merged_groups), strict=True):
            used = group.weights if result is hcsmoe else torch.full_like(group.weights, 1 / len(group.members))
            for role, matrices in problem.experts.roles().items():
                expected = sum(w * matrices[j] for w, j in zip(used, group.members, strict=True))
                torch.testing.assert_close(expert.roles()[role][0], expected, rtol=1e-12, atol=1e-12)
    for method in (average, hcsmoe):
        assert [result.group for result in merge(method, problem)] == problem.merged_groups


@pytest.mark.parametrize("gated", [True, False])
def test_alignment_is_the_best_of_all_permutations(gated):
    problem = problems.problem(width=4, gated=gated)
    for group, mean in zip(problem.merged_groups, aligned_mean(problem, problem.merged_groups), strict=True):
        members = problem.experts[group.members]
        roles = [members.up, members.down.mT] + ([members.gate] if gated else [])
        orders = []
        for place in range(len(group.members)):
            likeness = {
                order: sum(float((role[group.dominant] * role[place][list(order)]).sum()) for role in roles)
                for order in itertools.permutations(range(4))
            }
            orders.append(max(likeness, key=likeness.__getitem__))
        assert orders[group.dominant] == (0, 1, 2, 3)
        expected = reordered(members, torch.tensor(orders)).map(group.mean)
        for role, matrices in mean.roles().items():
            torch.testing.assert_close(matrices, expected.roles()[role], rtol=1e-12, atol=1e-12)


def without_ties(seed):
    tokens = problems.problem(seed=seed).reader.parts[False]
    return len(set(torch.bincount(tokens.index.flatten(), minlength=6).tolist())) == 6


@pytest.mark.parametrize(
    ("named", "features"), [(average, "plain"), (hcsmoe, "usage"), (msmoe, "aligned"), (zipit, "zipped")]
)
def test_a_named_baseline_is_a_triple_written_out(named, features):
    problem = problems.problem()
    both = merge(named, problem), merge(unsolved, problem, features=features)
    for one, other in zip(*both, strict=True):
        assert one.group == other.group
        for role, part in one.expert.roles().items():
            torch.testing.assert_close(part, other.expert.roles()[role], rtol=0, atol=0)


def test_picked_neurons_that_are_not_solved_keep_their_own_columns():
    problem = problems.problem()
    for result in merge(unsolved, problem, features="selected", width=0.6):
        columns = problem.experts.down[result.group.members].transpose(0, 1).flatten(1)  # of the whole pool
        assert all((columns == own[:, None]).all(0).any() for own in result.expert.down[0].T)
        assert result.expert.down.shape[2] == 3


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_one_order_of_neurons_common_to_all_experts_changes_nothing(name, seed):
    problem = problems.problem(seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).expand(6, -1)
    other = replace(problem, experts=reordered(problem.experts, order))
    found, expected = (compressed(each, *METHODS[name]) for each in (other, problem))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["msmoe", "zipit", "oracle", "joint, aligned", "joint, zipped", "select"])
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_an_order_of_its_own_for_each_expert_changes_nothing_either(name, seed):
    problem = problems.problem(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(5, generator=generator) for _ in range(6)])
    other = replace(problem, experts=reordered(problem.experts, orders))
    found, expected = (compressed(each, *METHODS[name]) for each in (other, problem))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("by", ["router", "outputs", "selection"])
def test_an_order_of_its_own_for_each_expert_changes_no_group(by):
    problem = problems.problem(expert_map=range(6))
    orders = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(e)) for e in range(6)])
    other = replace(problem, experts=reordered(problem.experts, orders))
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).tolist()
    profiled = {"usage": list(range(6)), "router_similarity": logits}
    found, expected = (cluster.group_experts(by, 3, each, profiled, 5).expert_map for each in (other, problem))
    assert found == expected and len(set(found)) == 3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", list(itertools.islice((s for s in itertools.count() if without_ties(s)), 3)))
def test_the_names_of_experts_mean_nothing(name, seed):
    problem = problems.problem(seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed + 1))  # new expert e was order[e]
    new_name = order.argsort()
    expert_map = [number for j in order.tolist() for number in [g.number for g in problem.groups if j in g.members]]
    parts = {
        held: Tokens(tokens.hidden, new_name[tokens.index], tokens.weight, tokens.logits[:, order])
        for held, tokens in problem.reader.parts.items()
    }
    usage = torch.bincount(parts[False].index.flatten(), minlength=6).tolist()
    reader = problems.Given(parts[False], parts[True])
    other = type(problem)(problem.experts[order], groups_of(expert_map, usage), reader, problem.act)
    found, expected = (compressed(each, *METHODS[name]) for each in (other, problem))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_groups_by_outputs_are_those_of_average_linkage_on_the_mean_outputs():
    problem = problems.problem(expert_map=range(6))
    tokens = problem.reader.parts[False].hidden
    means = np.stack([np.mean([problems.output(problem.experts, j, x).numpy() for x in tokens], 0) for j in range(6)])
    labels = fcluster(linkage(means, "average"), 3, "maxclust")
    found = cluster.group_experts("outputs", 3, problem, {}, 5).expert_map
    assert len(set(found)) == 3
    for i, j in itertools.combinations(range(6), 2):
        assert (found[i] == found[j]) == (labels[i] == labels[j])


def test_groups_by_router_join_the_centre_with_the_most_similar_logits():
    similarity = [[1, 0.9, 0.2, 0.1], [0.9, 1, 0.3, 0.8], [0.2, 0.3, 1, 0.7], [0.1, 0.8, 0.7, 1]]
    problem = problems.problem(expert_map=range(4))
    profiled = {"usage": [9, 1, 7, 2], "router_similarity": similarity}
    assert cluster.group_experts("router", 2, problem, profiled, 5).expert_map == [0, 0, 1, 1]
