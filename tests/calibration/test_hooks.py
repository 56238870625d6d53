"""Hooks on small modules with known calls: which rows are recorded, and what the unusual families are called with."""

import numpy as np
import pytest
import torch
from torch import nn

from mergemoe.calibration.hooks import Recorder

N, K, H = 4, 2, 3  # experts, choices, hidden size
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


class Routing(nn.Module):
    """A router that returns what it is told."""

    def forward(self, answer):
        return answer


class Experts(nn.Module):
    """Experts of a usual family, which compute nothing here."""

    def forward(self, *args):
        return args[0]


def recorded(args, routed, name="Experts", logits=0, identity=0, mask=MASK, sequence=0):
    """Return the rows of one call of a module whose class has this name."""
    model = nn.ModuleDict({"experts": type(name, (Experts,), {})(), "gate": Routing()})
    entry = {
        "module": "experts",
        "experts": N,
        "identity": identity,
        "router": {"module": "gate", "logits": logits},
    }
    recorder = Recorder(model, entry)
    model["gate"](routed)
    model["experts"](*args)
    rows = recorder.rows(mask, sequence)
    recorder.remove()
    return rows


def draw(tokens=6, seed=0):
    """Hidden states, logits, chosen experts and their weights, in float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, H, generator=generator, dtype=torch.float64)
    logits = torch.randn(tokens, N, generator=generator, dtype=torch.float64)
    weight, index = logits.softmax(-1).topk(K)
    return hidden, logits, index, weight


def test_the_rows_are_those_of_real_tokens_in_order():
    hidden, logits, index, weight = draw()
    rows = recorded((hidden, index, weight), (logits,), sequence=7)
    assert rows["sequence"].tolist() == [7, 7, 7, 8, 8]
    for name, expected in {"hidden": hidden, "expert_weight": weight, "router_logits": logits}.items():
        assert torch.equal(rows[name], expected[:5])
    assert rows["expert_index"].tolist() == index[:5].tolist()
    assert (rows["expert_index"].dtype, rows["sequence"].dtype) == (torch.int16, torch.int32)


def test_a_router_may_return_its_logits_alone_and_hidden_states_by_sequence():
    hidden, logits, index, weight = draw()
    rows = recorded((hidden.view(2, 3, H), index, weight), logits.view(2, 3, N))
    assert torch.equal(rows["hidden"], hidden[:5]) and torch.equal(rows["router_logits"], logits[:5])


def test_a_later_call_takes_the_place_of_an_earlier_one_until_the_hooks_are_removed():
    model = nn.ModuleDict({"experts": Experts(), "gate": Routing()})
    entry = {"module": "experts", "experts": N, "identity": 0, "router": {"module": "gate", "logits": 0}}
    recorder, (hidden, logits, index, weight) = Recorder(model, entry), draw()
    for scale in (1, 2):
        model["gate"]((scale * logits,))
        model["experts"](scale * hidden, index, weight)
    assert torch.equal(recorder.rows(MASK, 0)["hidden"], 2 * hidden[:5])
    recorder.remove()
    model["gate"]((logits,))
    model["experts"](hidden, index, weight)
    assert torch.equal(recorder.rows(MASK, 0)["hidden"], 2 * hidden[:5])


def test_a_choice_of_an_identity_expert_has_weight_0_and_its_logits_are_left_out():
    hidden, logits, index, weight = draw()
    index = index.clone()
    index[[0, 3], [1, 0]] = torch.tensor([N, N + 1])
    wide = torch.cat([logits, torch.ones(6, 2, dtype=torch.float64)], 1)
    rows = recorded((hidden, index, weight), (wide,), identity=2)
    assert torch.equal(rows["router_logits"], logits[:5])
    assert rows["expert_weight"][0, 1] == rows["expert_weight"][3, 0] == 0
    assert rows["expert_index"][0, 1] == rows["expert_index"][3, 0] == 0
    other = torch.ones(5, K, dtype=torch.bool)
    other[[0, 3], [1, 0]] = False
    assert torch.equal(rows["expert_weight"][other], weight[:5][other])


def routed_sum(rows, matrices, tokens):
    """Return sum_j g_j W_j x per token [n, H], row by row in numpy; rows of one token follow one another."""
    y = np.zeros((tokens, H))
    times = len(rows["hidden"]) // tokens
    for row in range(len(rows["hidden"])):
        x = rows["hidden"][row].numpy()
        for j, g in zip(rows["expert_index"][row].tolist(), rows["expert_weight"][row].tolist(), strict=True):
            y[row // times] += g * matrices[j] @ x
    return y


MATRICES = np.random.default_rng(0).standard_normal((N, H, H))


def test_llama4_experts_read_inputs_scaled_by_the_score():
    hidden, logits, index, _ = draw()
    scores = torch.zeros_like(logits).scatter_(1, index, logits.gather(1, index).sigmoid())
    inputs = (hidden[None] * scores.T[..., None]).flatten(0, 1)  # [N * n, H], as the stock block repeats them
    rows = recorded((inputs,), (scores, logits), "Llama4TextExperts", logits=1)
    expected = sum(np.einsum("hi,ni->nh", MATRICES[j], (hidden * scores[:, j, None]).numpy()) for j in range(N))
    assert len(rows["hidden"]) == 5 * K and rows["sequence"].tolist() == [0] * 6 + [1] * 4
    np.testing.assert_allclose(routed_sum(rows, MATRICES, 5), expected[:5], rtol=1e-12)
    assert torch.equal(rows["router_logits"], logits[:5].repeat_interleave(K, 0))


def test_jetmoe_choices_come_back_in_the_order_of_tokens():
    hidden, logits, index, weight = draw()
    order = index.flatten().argsort(stable=True)
    gates, sizes = weight.flatten()[order], torch.bincount(index.flatten(), minlength=N).tolist()
    rows = recorded((hidden,), (order, order // K, gates, sizes, logits), "JetMoeMoE", logits=4)
    assert rows["expert_index"].tolist() == index[:5].tolist() and torch.equal(rows["expert_weight"], weight[:5])


@pytest.mark.parametrize("prefix", ["", "Mapped"], ids=["stock", "compressed"])
def test_a_token_that_switch_dropped_has_weight_0(prefix):
    hidden, logits, _, weight = draw()
    chosen = nn.functional.one_hot(logits.argmax(1), N)[:, None]
    chosen[2] = 0  # its expert had no room
    expected = weight[:5, :1].clone()
    expected[2] = 0
    rows = recorded((hidden, chosen, weight[:, :1]), (0, 0, logits), f"{prefix}SwitchTransformersExperts", logits=2)
    assert torch.equal(rows["expert_weight"], expected)
    real = [0, 1, 3, 4]
    assert rows["expert_index"].flatten()[real].tolist() == logits.argmax(1)[real].tolist()
