"""The joint solve in its dual form, against the direct one."""

import multiprocessing

import problems
import pytest
import torch
from memory_growth import memory_growth
from problems import CASES, merge

from benchmarks.memory import MB
from mergemoe.errors import UserError
from mergemoe.joint_solves import conjugate_gradients, kernel_ridge
from mergemoe.joint_solves.routed_features import RoutedFeatures
from mergemoe.merging import feature_rules, output_mixtures
from mergemoe.methods import joint
from mergemoe.moe.experts import down_of


def solution(results):
    return torch.cat([down_of(result.expert) for result in results], 1)


@pytest.mark.parametrize("tokens", [12, 300])
@pytest.mark.parametrize(("ridge", "mixtures"), [(1e-4, 256), (0.1, 256), ("auto", 256), ("auto", 3)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_direct_solution(case, ridge, mixtures, tokens, monkeypatch):
    monkeypatch.setattr(output_mixtures, "MIXTURES", mixtures)
    monkeypatch.setattr(kernel_ridge, "ROWS", 5)
    monkeypatch.setattr(conjugate_gradients, "fit", None)
    problem = problems.problem(**case, tokens=tokens)
    direct = merge(joint, problem, ridge=ridge)
    monkeypatch.setattr(joint, "COPIES", 1e9)
    found = merge(joint, problem, ridge=ridge)
    mine, its = found[0].record, direct[0].record
    assert mine["ridge"] == its["ridge"] and mine.get("solved") == its.get("solved")
    assert mine["objective"] == pytest.approx(its["objective"], rel=1e-5)
    if ridge == "auto":
        tried, exact = mine["heldout_error_by_ridge"], its["heldout_error_by_ridge"]
        assert tried == pytest.approx({name: exact[name] for name in tried}, rel=1e-5)
    torch.testing.assert_close(solution(found), solution(direct), rtol=1e-4, atol=1e-5)


def test_priors_stay_as_they_were():
    problem = problems.problem(tokens=12)
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    before = [down_of(expert).clone() for expert in experts]
    assert kernel_ridge.fit(RoutedFeatures(problem, experts, 1e9), experts, 0.1, memory=1.0)
    assert all(torch.equal(down_of(expert), down) for expert, down in zip(experts, before, strict=True))


@pytest.mark.parametrize(
    ("tokens", "massive", "taken"), [(12, 1, True), (600, 1, False), (12, 1e3, True), (12, 1e5, False)]
)
def test_it_is_taken_if_its_kernel_fits_and_is_not_drowned_by_one_neuron(tokens, massive, taken, monkeypatch):
    problem = problems.problem(tokens=tokens, width=200, hidden_size=9)
    problem.experts.up[:, 0] *= massive
    solve, found = conjugate_gradients.fit, []
    monkeypatch.setattr(conjugate_gradients, "fit", lambda *args: found.append(1) or solve(*args))
    merge(joint, problem, ridge=1e-3, memory=0.006)
    assert bool(found) != taken


def test_what_is_not_finite_is_refused():
    problem = problems.problem(tokens=12)
    problem.reader.parts[False].hidden[3, 2] = torch.nan
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    with pytest.raises(UserError, match="NaN"):
        kernel_ridge.fit(RoutedFeatures(problem, experts, 1e9), experts, 0.1, memory=1.0)


def test_group_by_group_is_tried_only_where_its_sums_have_room_beside_the_features(monkeypatch):
    problem = problems.problem(tokens=12, width=200, hidden_size=9)
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 200)
    kept = RoutedFeatures(problem, experts, 1e9).bytes
    sums = 8 * 4 * 200 * (2 * 200 + joint.HELD * 9)
    monkeypatch.setattr(joint, "bytes_needed", lambda *args: 0)
    for room, tried in ((1.01 * kept, True), (0.5 * kept, False)):
        record = merge(joint, problem, memory=(sums + room) / 1e9)[0].record
        assert "residual" not in record and ("heldout_error" in record) == tried


def growth(answer):
    """Send what a kernel of 3,000 tokens is said to need, and how far memory rises; a small one comes before it."""
    torch.set_num_threads(1)
    sizes = {"expert_map": [0, 0, 1, 2, 3, 4, 5, 6, 7], "hidden_size": 64, "width": 32}
    small, large = (problems.problem(**sizes, tokens=tokens) for tokens in (50, 3000))
    experts = feature_rules.merged_experts(large, large.groups, "usage", 32)
    passes = RoutedFeatures(large, experts, 1e9)
    kernel_ridge.fit(RoutedFeatures(small, experts, 1e9), experts, 0.1, memory=1.0)
    grown = memory_growth(lambda: kernel_ridge.fit(passes, experts, 0.1, memory=1.0))
    answer.send((kernel_ridge.bytes_needed(passes), grown))


@pytest.mark.full
def test_it_holds_what_it_says():
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=growth, args=(its,))
    process.start()
    its.close()
    said, grown = mine.recv()
    process.join()
    assert 0.8 * said < grown < said + 10 * MB
