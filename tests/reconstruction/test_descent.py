"""The descent against a plain loop of PyTorch; its best state; a descent that is killed."""

import itertools
from dataclasses import replace

import pytest
import torch
from problems import merge, problem
from torch import nn

from mergemoe.artifacts import store
from mergemoe.methods import average
from mergemoe.moe.router_rule import Router, Rule
from mergemoe.moe.solved import solved_tensors
from mergemoe.reconstruction import descent, step_size
from mergemoe.reconstruction.descent import Descent, Settings
from mergemoe.reconstruction.kept_tokens import KeptTokens, batch_rows
from mergemoe.reconstruction.objective import Approximation
from mergemoe.reconstruction.step_size import cosine, pace

PARTS = ["gate", "up", "down"]
SETTINGS = Settings(steps=20, batch=16, rate=0.1, seed=3, dtype="float32")
MAP = [0, 0, 1, 2, 1, 3]


@pytest.fixture(autouse=True)
def any_gain_counts(monkeypatch):
    """Forty held-out tokens of a random layer are too few for a sure gain; a test of its own sets it back."""
    monkeypatch.setattr(descent, "SURE", 0.0)


def start(layer):
    return solved_tensors(layer.experts, MAP, merge(average, layer))


def begun(layer, settings=SETTINGS, parts=PARTS):
    kept = [KeptTokens(layer, heldout, None, "kept") for heldout in (False, True)]
    return Descent(Approximation(layer, start(layer), parts), *kept, settings)


class Plain(nn.Module):
    """Four experts in place of six, in float64, written with modules and without any function of the library."""

    def __init__(self, solved, layer):
        super().__init__()
        self.layer = layer
        rows = {int(group): row for row, group in enumerate(solved["groups"])}
        for role in PARTS:
            old = getattr(layer.experts, role)
            stack = [solved[role][rows[g]] if g in rows else old[MAP.index(g)] for g in range(4)]
            setattr(self, role, nn.ParameterList([nn.Parameter(part.clone()) for part in stack]))

    def forward(self, x, index, weight):
        y = []
        for token, experts, weights in zip(x, index.tolist(), weight, strict=True):
            parts = []
            for expert, g in zip(experts, weights, strict=True):
                i = MAP[expert]
                gate, up = self.gate[i] @ token, self.up[i] @ token
                parts.append(g * (self.down[i] @ (gate * torch.sigmoid(gate) * up)))
            y.append(sum(parts))
        return torch.stack(y)


def test_twenty_steps_are_those_of_a_plain_loop():
    layer = problem()
    found = begun(layer)
    found.run(None)
    tokens, plain, before = layer.reader.parts[False], *(Plain(start(layer), layer) for _ in range(2))
    with torch.no_grad():
        y = plain_original(layer, tokens)
    groups = [{"params": list(getattr(plain, role))} for role in PARTS]
    adam = torch.optim.Adam(groups, betas=descent.BETAS)
    units = []
    for group, inputs in zip(groups, (7, 7, 5), strict=True):
        every = torch.cat([part.detach().flatten() for part in group["params"]])
        units.append(float((every.square().sum() / len(every) / inputs).sqrt()))
    rows, root = batch_rows(len(y), SETTINGS.batch, SETTINGS.seed, 0), found.history[0][2] ** (1 / 3)
    energy = y.square().sum(1).mean()
    for step in range(20):
        chosen = next(rows)
        for group, unit in zip(adam.param_groups, units, strict=True):
            group["lr"] = SETTINGS.rate * root * unit * pace(step, 20)
        loss = (plain(tokens.hidden[chosen], tokens.index[chosen], tokens.weight[chosen]) - y[chosen]).square()
        adam.zero_grad(set_to_none=False)  # a group without a token has a gradient, too: 0
        (loss.sum(1).mean() / energy).backward()
        for group in adam.param_groups if step == 0 else ():
            gradients = torch.cat([part.grad.flatten() for part in group["params"]])
            group["eps"] = descent.EPS * float((gradients @ gradients / len(gradients)).sqrt())
        adam.step()
    for role in PARTS:
        for i, weight in enumerate(getattr(plain, role)):
            torch.testing.assert_close(found.layer.weights[f"{role}.{i}"][0], weight, rtol=1e-6, atol=1e-6)
            assert (weight - before.get_parameter(f"{role}.{i}")).abs().max() > 0.02


def plain_original(layer, tokens):
    def expert(e, x):
        gate = layer.experts.gate[e] @ x
        return layer.experts.down[e] @ (gate * torch.sigmoid(gate) * (layer.experts.up[e] @ x))

    rows = zip(tokens.hidden, tokens.index.tolist(), tokens.weight, strict=True)
    return torch.stack([sum(g * expert(e, x) for e, g in zip(es, gs, strict=True)) for x, es, gs in rows])


def test_a_descent_without_a_number_of_steps_ends_with_the_first_cosine_that_gains_little(monkeypatch):
    monkeypatch.setattr(step_size, "FIRST", 10)
    monkeypatch.setattr(descent, "GAIN", 0.01)
    found = begun(problem(), Settings("auto", 16, 0.5, 3, "float32"))
    found.run(None)
    ends = [0, 10, 30, 70, 150, 310, 630]
    least = {end: min(error for step, _, error in found.history if step <= end) for end in ends if end <= found.step}
    *_, before, last = least
    assert found.step == last in ends and last > 10
    gains = [1 - least[b] / least[a] for a, b in itertools.pairwise(least)]
    assert all(gain >= descent.GAIN for gain in gains[:-1]) and gains[-1] < descent.GAIN


def test_the_rate_falls_to_zero_along_each_cosine():
    assert [cosine(step, "auto") for step in (0, 99, 100, 299, 300)] == [(0, 100)] * 2 + [(100, 200)] * 2 + [(300, 400)]
    assert [cosine(step, 50) for step in (0, 49, 50)] == [(0, 50), (0, 50), (50, 50)]
    for steps, ends in ((50, [50]), ("auto", [100, 300])):
        for end in ends:
            assert pace(end - 1, steps) < 0.01
    assert pace(100, "auto") == pytest.approx(1.0, rel=0.01) and pace(0, "auto") == pytest.approx(1 / 20, rel=0.01)


@pytest.mark.parametrize(("batch", "every"), [(1, 134), (16, 25)])
def test_measurements_take_a_tenth_of_the_work_at_most(batch, every):
    found = begun(problem(), Settings(300, batch, 0.1, 3, "float32"))
    found.run(None)
    assert found.heldout.count == 40
    assert [step for step, *_ in found.history] == [*range(0, 300, every), 300]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_step_follows_the_scale_of_the_weights(scale):
    layer = problem(biased=True)
    weights = {f"up.{i}": scale * part for i, part in enumerate(layer.experts.up[:, None])}
    weights |= {f"up_bias.{i}": part for i, part in enumerate(layer.experts.up_bias[:, None])}
    first, second = step_size.role_groups(weights)
    rms = scale * float(layer.experts.up.square().mean().sqrt())
    assert first["unit"] == second["unit"] == pytest.approx(rms / 7**0.5, rel=1e-12)
    assert [len(group["params"]) for group in (first, second)] == [6, 6]


def test_the_best_state_is_the_one_with_the_least_error_as_it_is_stored(monkeypatch):
    monkeypatch.setattr(descent, "MEASURE_EVERY", 5)
    layer = problem()
    found = begun(layer)
    found.run(None)
    assert [step for step, *_ in found.history] == [0, 9, 18, 20]
    errors = {step: error for step, _, error in found.history}
    assert found.best_step == min(errors, key=errors.get) > 0
    again = found.heldout.error(Approximation(layer, found.best).output)
    assert again == pytest.approx(errors[found.best_step], rel=1e-12)
    assert all(fit > 0 for _, fit, _ in found.history[1:])


@pytest.mark.parametrize(
    ("errors", "sure"),
    [
        ([0.8, 0.7, 0.9, 0.8], True),
        ([0.8, 0.7, 1.1, 0.8], False),  # a mean fall of .15, two standard errors of .17
        ([0.8, 0.7, 1.1, 0.8] * 2, True),  # more sequences tell more
        ([0.1, 1.0], False),
        ([0.8, 0.8], True),
        ([0.1], False),
        ([1.0, 1.0], False),
        ([1.2, 1.3], False),
    ],
)
def test_a_state_is_surely_better_if_the_sequences_agree(monkeypatch, errors, sure):
    monkeypatch.undo()
    start = torch.ones(len(errors), dtype=torch.float64)
    assert descent.surely_less(torch.tensor(errors, dtype=torch.float64), start) == sure


def test_what_gains_in_one_sequence_alone_is_not_kept(monkeypatch):
    layer = problem()
    found = begun(layer)
    found.run(None)
    assert found.best_step == 20
    monkeypatch.undo()
    unsure = begun(layer)
    unsure.heldout.sequence = torch.zeros_like(unsure.heldout.sequence)
    unsure.run(None)
    assert unsure.best is None and unsure.best_step == 0
    assert [error for *_, error in unsure.history] == pytest.approx([error for *_, error in found.history], rel=1e-12)


def test_no_state_is_kept_if_none_is_better_than_the_start():
    found = begun(problem(), Settings(steps=20, batch=16, rate=300.0, seed=0, dtype="float32"))
    found.run(None)
    assert found.best is None and found.best_step == 0 and found.step == 20


def test_a_layer_whose_output_is_zero_takes_no_step():
    layer = problem()
    layer.experts.down.zero_()
    found = begun(layer)
    found.run(None)
    assert found.step == 0 and found.history == [] and found.best is None


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("at", [1, 7, 12, 19])
@pytest.mark.parametrize("router", [False, True])
def test_a_killed_descent_goes_on_to_the_same_bytes(tmp_path, monkeypatch, at, router):
    monkeypatch.setattr(descent, "MEASURE_EVERY", 5)
    monkeypatch.setattr(descent, "SAVE_EVERY", 0.0)
    layer, parts = problem(), PARTS
    if router:
        rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        layer, parts = layer.with_router(Router(Rule("softmax", 2, True), rows)), [*PARTS, "router"]

    def begin():
        tensors = start(layer) | ({"router": layer.changed.rows} if router else {})
        kept = [KeptTokens(layer, heldout, None, "kept") for heldout in (False, True)]
        return Descent(Approximation(layer, tensors, parts), *kept, SETTINGS)

    whole, killed, resumed = begin(), begin(), begin()
    whole.run(None)
    advance = killed._advance

    def advance_or_die(batch):
        if killed.step == at:
            raise Killed
        advance(batch)

    monkeypatch.setattr(killed, "_advance", advance_or_die)
    with pytest.raises(Killed):
        killed.run(tmp_path)
    steps = []
    monkeypatch.setattr(
        resumed, "_advance", lambda batch: (steps.append(resumed.step), Descent._advance(resumed, batch))
    )
    resumed.run(tmp_path)
    assert steps[0] == at  # not from the start
    assert resumed.history == whole.history and resumed.best_step == whole.best_step
    assert resumed.best.keys() == whole.best.keys()
    assert all(torch.equal(part, whole.best[name]) for name, part in resumed.best.items())
    assert all(torch.equal(weight, whole.layer.weights[name]) for name, weight in resumed.layer.weights.items())


def test_a_damaged_state_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "SAVE_EVERY", 0.0)
    whole, first, resumed = (begun(problem()) for _ in range(3))
    whole.run(None)
    first.run(tmp_path)
    path = tmp_path / "state.safetensors"
    assert store.read_tensors(path)["steps"].tolist()[0] == 20
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    resumed.run(tmp_path)
    assert resumed.history == whole.history


def test_the_state_of_another_job_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "SAVE_EVERY", 0.0)
    other, whole, own = begun(problem(), replace(SETTINGS, seed=4)), begun(problem()), begun(problem())
    other.run(tmp_path / "other")
    (tmp_path / "own").mkdir()
    (tmp_path / "other/state.safetensors").rename(tmp_path / "own/state.safetensors")
    whole.run(None)
    own.run(tmp_path / "own")
    assert own.history == whole.history != other.history


def test_a_batch_of_more_tokens_than_there_are_is_measured_as_often_as_one_of_all():
    few, many = (begun(problem(), replace(SETTINGS, batch=batch)) for batch in (150, 10_000))
    assert few.every == many.every


@pytest.mark.parametrize("targets", ["kept", "recomputed"])
def test_experts_that_are_exact_stay_exact_if_each_token_has_one_expert(targets):
    layer = problem(top_k=1, tokens=600)
    layer = type(layer)(layer.experts.map(lambda m: m.float()), layer.groups, layer.reader, layer.act)
    kept = [KeptTokens(layer, heldout, None, targets) for heldout in (False, True)]
    start_of = solved_tensors(layer.experts, MAP, merge(average, layer))
    found = Descent(Approximation(layer, start_of, PARTS), *kept, Settings(200, 64, 4.0, 0, "float32"))
    found.run(None)
    for i, member in ((2, 3), (3, 5)):  # groups of one expert each
        for role in PARTS:
            before, now = getattr(layer.experts, role)[member], found.layer.weights[f"{role}.{i}"][0].detach()
            assert (now - before).norm() < 1e-3 * before.norm(), (role, i)
    moved = found.layer.weights["up.0"][0].detach() - found.layer.origin["up"][0]
    assert moved.norm() > 0.1 * found.layer.origin["up"][0].norm()


def test_products_in_bfloat16_come_near_to_those_in_float32():
    layer = problem()
    layer = type(layer)(layer.experts.map(lambda m: m.float()), layer.groups, layer.reader, layer.act)
    layer.reader.parts = {
        part: type(tokens)(tokens.hidden.float(), tokens.index, tokens.weight.float(), tokens.logits.float())
        for part, tokens in layer.reader.parts.items()
    }
    single, half = (begun(layer, Settings(20, 16, 0.1, 3, dtype)) for dtype in ("float32", "bfloat16"))
    single.run(None)
    half.run(None)
    assert single.history[-1] != half.history[-1]
    assert half.history[-1][2] == pytest.approx(single.history[-1][2], rel=0.05)
    assert half.history[-1][2] < 0.99 * half.history[0][2]
    assert half.layer.weights["up.0"].dtype == torch.float32
