"""A refined layer: in the form of a solved one, never worse than its start, and its start if nothing can be gained."""

import pytest
import torch

from mergemoe.checkpoints.expert_weights import layer_entry, read_experts, read_router
from mergemoe.errors import UserError
from mergemoe.merging.solve import solve, untouched
from mergemoe.methods import catalogue
from mergemoe.moe import router_rule
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.solved import compact_experts, output_error
from mergemoe.moe.tokens import Remembered
from mergemoe.reconstruction.refine import refine

SILU = Activation("silu")
OPTIONS = {
    "steps": 30,
    "batch": 64,
    "rate": 0.1,
    "parts": ["gate", "up", "down"],
    "seed": 0,
    "dtype": "float32",
    "targets": "kept",
}
ROWS = ("hidden", "expert_index", "expert_weight", "router_logits", "sequence")
PAIRS, PRUNED = [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, -1, 2, -1, 3, -1, -1]
STARTS = {
    "mergemoe": ("mergemoe", PAIRS, {}),
    "reap": ("reap", PRUNED, {}),
    "folded": ("joint", PAIRS, {"routing": "folded", "ridge": 0.1}),
    "slim": ("slim", list(range(8)), {"width": 0.5, "ridge": 0.1}),
    "uneven groups": ("average", [0, 0, 0, 1, 1, 2, 3, 4], {}),
}


@pytest.fixture(scope="module")
def experts(described):
    return read_experts(described, 1)


@pytest.fixture(scope="module")
def router(described):
    return router_rule.layer_router(layer_entry(described, 1), read_router(described, 1, torch.device("cpu")))


def solved(experts, reader, router, method, expert_map, options):
    complete = catalogue.complete(method, options)
    changed = router if catalogue.routing(method, options) != "preserved" else None
    tensors, record = solve(experts, expert_map, [1] * 8, reader, SILU, router=changed, method=method, **complete)
    return tensors, record, changed


def error_of(experts, reader, tensors, changed):
    working = experts.map(lambda m: m.float())
    problem = Problem(working, groups_of(tensors["expert_map"].tolist(), [1] * 8), reader, SILU)
    if changed:
        problem = problem.with_router(router_rule.Router(changed.rule, tensors["router"], tensors.get("router_bias")))
    return output_error(working, compact_experts(working, tensors), problem.shares, reader, SILU, heldout=True)


@pytest.mark.parametrize(("method", "expert_map", "options"), STARTS.values(), ids=STARTS)
def test_the_fitted_error_falls_and_the_held_out_error_does_not_rise(
    experts, reader, router, method, expert_map, options
):
    start, before, changed = solved(experts, reader, router, method, expert_map, options)
    parts = [*OPTIONS["parts"], *(["router"] if changed else [])]
    tensors, record = refine(experts, start, reader, SILU, router=changed, **OPTIONS | {"parts": parts})
    assert {name: part.dtype for name, part in tensors.items()} == {name: part.dtype for name, part in start.items()}
    assert record["start_error"] == pytest.approx(before["output_error"], rel=1e-4)
    first, *fitted = [one["fit"] for one in record["history"]]
    assert first is None
    assert fitted[-1] < fitted[0] < 1.1 * record["start_error"]["fit"]
    assert record["output_error"]["heldout"] <= record["start_error"]["heldout"]
    assert record["output_error"]["heldout"] == pytest.approx(error_of(experts, reader, tensors, changed), rel=1e-5)
    assert record["steps"] == 30 and record["best_step"] <= 30
    assert bool(record["best_step"]) == (record["output_error"] != record["start_error"])
    assert (record["experts"], record["kept"]) == (8, before["kept"])
    for name in parts:
        assert torch.equal(tensors[name], start[name]) == (record["best_step"] == 0), name


def test_parts_that_are_not_named_keep_their_bytes(experts, reader, router):
    start, *_ = solved(experts, reader, router, *STARTS["reap"])
    tensors, record = refine(experts, start, reader, SILU, router=router, **OPTIONS | {"parts": ["down"]})
    assert record["best_step"] > 0
    kept = experts[[PRUNED.index(expert) for expert in range(4)]]
    for role in ("gate", "up", "down"):
        assert torch.equal(tensors[role], getattr(kept, role)) == (role != "down")
    assert torch.equal(tensors["router"], start["router"])


def test_recomputed_targets_are_the_kept_ones(experts, reader, router, tmp_path):
    start, *_ = solved(experts, reader, router, *STARTS["mergemoe"])
    kept, again = (
        refine(experts, start, reader, SILU, scratch=tmp_path / targets, **OPTIONS | {"targets": targets})[1]
        for targets in ("kept", "recomputed")
    )
    for one, other in zip(kept["history"], again["history"], strict=True):
        assert one["heldout"] == pytest.approx(other["heldout"], rel=1e-3)
        assert one["fit"] == (one["fit"] and pytest.approx(other["fit"], rel=1e-3))


@pytest.mark.parametrize("name", STARTS)
def test_zero_steps_leave_the_bytes_of_the_start(experts, reader, router, name):
    start, _, changed = solved(experts, reader, router, *STARTS[name])
    tensors, record = refine(experts, start, reader, SILU, router=changed, **OPTIONS | {"steps": 0})
    assert tensors.keys() == start.keys() and all(torch.equal(tensors[key], start[key]) for key in start)
    assert record["output_error"] == record["start_error"] and record["steps"] == record["best_step"] == 0


def test_a_rate_that_is_too_high_leaves_the_start(experts, reader, router):
    start, *_ = solved(experts, reader, router, *STARTS["mergemoe"])
    tensors, record = refine(experts, start, reader, SILU, **OPTIONS | {"rate": 1e3})
    assert all(torch.equal(tensors[key], start[key]) for key in start)
    assert record["best_step"] == 0 and record["output_error"] == record["start_error"]


def test_a_layer_that_no_method_works_on_stays_as_it_is(experts, reader):
    start, _ = untouched(experts, reader)
    tensors, record = refine(experts, start, reader, SILU, **OPTIONS)
    assert all(torch.equal(tensors[key], start[key]) for key in start) and tensors.keys() == start.keys()
    assert record["output_error"] == record["start_error"] == {"fit": 0.0, "heldout": 0.0}
    assert record["steps"] == 0


def test_all_experts_at_full_width_keep_error_zero_and_the_original_bytes(experts, reader):
    start, _ = solve(experts, list(range(8)), [1] * 8, reader, SILU, method="mergemoe", ridge=0.0)
    tensors, record = refine(experts, start, reader, SILU, **OPTIONS)
    assert len(tensors["groups"]) == 0 and record["output_error"] == {"fit": 0.0, "heldout": 0.0}


def test_a_descent_that_diverges_ends_with_a_word_and_the_start(experts, reader, router, capsys):
    start, *_ = solved(experts, reader, router, *STARTS["mergemoe"])
    tensors, record = refine(experts, start, reader, SILU, **OPTIONS | {"rate": 1e30})
    assert all(torch.equal(tensors[key], start[key]) for key in start)
    assert record["steps"] < 30 and record["output_error"] == record["start_error"]
    assert "`rate` is too high" in capsys.readouterr().err


@pytest.mark.parametrize("held", [0, 1])
def test_with_fewer_than_two_held_out_sequences_nothing_is_computed(experts, reader, router, held):
    start, *_ = solved(experts, reader, router, *STARTS["mergemoe"])
    rows = {name: reader.read(name, 0, 50) for name in ROWS}
    few = Remembered([rows], torch.arange(6) < held)
    with pytest.raises(UserError, match=f"takes 2 of them to tell a gain from chance; there are {held}.*`holdout`"):
        refine(experts, start, few, SILU, **OPTIONS)
