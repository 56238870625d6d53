"""A solved layer is behind the router that its solve left it."""

import problems
import torch

from mergemoe.moe.router_rule import Router, Rule
from mergemoe.moe.solved import solved_problem

MAP = torch.tensor([0, 0, 1, 2, 1, 3])
RULE = Rule("sigmoid", top_k=2, normalized=True, scaling=2.5)


def test_its_router_has_the_rows_and_the_bias_of_the_solve_and_the_rule_of_the_original():
    layer = problems.problem()
    rows, bias = torch.randn(4, 7), torch.randn(4)
    solved = {"expert_map": MAP, "router": rows, "router_bias": bias}
    original = Router(RULE, torch.randn(6, 7), torch.randn(6))
    found = solved_problem(layer.experts, solved, layer.reader, layer.act, original)
    tokens = layer.reader.parts[False]
    expected = RULE.weights(tokens.hidden @ rows.double().T, bias.double())
    assert torch.equal(found.shares(tokens), expected)
    without = solved_problem(layer.experts, {"expert_map": MAP, "router": rows}, layer.reader, layer.act, original)
    assert torch.equal(without.shares(tokens), RULE.weights(tokens.hidden @ rows.double().T, None))


def test_without_a_router_of_its_own_its_groups_share_the_weights_of_their_members():
    layer = problems.problem()
    found = solved_problem(layer.experts, {"expert_map": MAP}, layer.reader, layer.act, None)
    tokens = layer.reader.parts[False]
    assert torch.equal(found.shares(tokens), layer.shares(tokens))
