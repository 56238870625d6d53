"""The objective's output and its gradients, for every activation rule and routing."""

from dataclasses import replace

import problems
import pytest
import torch
from problems import merge

from mergemoe.methods import average
from mergemoe.moe.expert_forward import FUNCTIONS, Activation, shared_output
from mergemoe.moe.router_rule import Router, Rule
from mergemoe.moe.solved import compact_experts, solved_tensors
from mergemoe.reconstruction.objective import Approximation

ACTIVATIONS = {
    "plain": Activation("silu"),
    "clamped": Activation("silu", "clamped", limit=1.5),
    "clamped_after": Activation("silu", "clamped_after", limit=1.0),
    "shifted": Activation("silu", "shifted", limit=1.5, alpha=1.7),
    **{name: Activation(name) for name in FUNCTIONS if name != "silu"},
}
ROUTERS = {
    "softmax": Rule("softmax", top_k=2, normalized=True),
    "softmax, not normalized": Rule("softmax", top_k=2, normalized=False),
    "sigmoid, in groups": Rule("sigmoid", top_k=2, normalized=True, scaling=2.5, groups=2, top_groups=1),
}


def layer(rule=None, norm=False, act=None, **shape):
    """A problem, and its solution by plain means."""
    problem = problems.problem(**{"hidden_size": 5, "width": 3, "tokens": 12, **shape})
    if act:
        problem = replace(problem, act=act)
    if norm:
        scale = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64).expand(len(problem.experts), -1)
        problem = replace(
            problem, experts=replace(problem.experts, norm=scale), act=replace(problem.act, norm_eps=1e-6)
        )
    expert_map = [next(g.number for g in problem.groups if e in g.members) for e in range(len(problem.experts))]
    solved = solved_tensors(problem.experts, expert_map, merge(average, problem))
    if rule:
        generator = torch.Generator().manual_seed(5)
        rows = torch.randn(len(problem.groups), 5, generator=generator, dtype=torch.float64)
        solved["router"] = rows
        problem = problem.with_router(Router(rule, rows, torch.linspace(0, 0.3, len(rows), dtype=torch.float64)))
    return problem, solved


def check_gradients(problem, solved, parts):
    approximation = Approximation(problem, solved, parts)
    tokens = problem.reader.parts[False]
    target = torch.randn(tokens.hidden.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def loss(*weights):
        return (approximation.output(tokens) - target).square().sum()

    assert approximation.weights
    assert torch.autograd.gradcheck(loss, tuple(approximation.weights.values()), eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_equal_finite_differences_for_every_activation(act):
    check_gradients(*layer(act=act, biased=act.rule == "shifted"), ["gate", "up", "down"])


def test_gradients_equal_finite_differences_without_gates_and_before_a_norm():
    check_gradients(*layer(gated=False), ["gate", "up", "down"])
    check_gradients(*layer(norm=True), ["gate", "up", "down"])


@pytest.mark.parametrize("rule", ROUTERS.values(), ids=ROUTERS)
def test_gradients_equal_finite_differences_behind_a_changed_router(rule):
    check_gradients(*layer(rule), ["gate", "up", "down", "router"])


@pytest.mark.parametrize("rule", [None, *ROUTERS.values()], ids=["preserved", *ROUTERS])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_the_output_is_that_of_the_compact_experts(rule, norm):
    problem, solved = layer(rule, norm=norm)
    compact, tokens = compact_experts(problem.experts, solved), problem.reader.parts[False]
    expected = shared_output(tokens.hidden, problem.shares(tokens), compact, problem.act)
    torch.testing.assert_close(Approximation(problem, solved).output(tokens), expected, rtol=1e-12, atol=1e-12)


def test_only_the_named_parts_are_fitted_and_their_biases_with_them():
    problem, solved = layer(biased=True)
    names = {name.partition(".")[0] for name in Approximation(problem, solved, ["gate", "down"]).weights}
    assert names == {"gate", "gate_bias", "down", "down_bias"}
    assert Approximation(problem, solved).weights == {}


def test_a_solved_layer_is_given_back_with_all_its_experts():
    problem, solved = layer(ROUTERS["softmax"])
    found = Approximation(problem, solved, ["gate", "up", "down", "router"]).solved()
    assert found.keys() == solved.keys()
    assert found["groups"].tolist() == [0, 1, 2, 3] != solved["groups"].tolist()
    compact = compact_experts(problem.experts, solved)
    for role, matrices in compact.roles().items():
        assert torch.equal(found[role], matrices)
    for name in ("expert_map", "router"):
        assert torch.equal(found[name], solved[name])
