"""The joint solve by conjugate gradients: against the direct one, bounded in memory and steps, killed on its way."""

import multiprocessing
import signal
from dataclasses import replace

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_growth import memory_growth
from problems import CASES, merge
from stage_by_hand import StageByHand

from benchmarks.memory import MB
from mergemoe.artifacts import store
from mergemoe.errors import UserError
from mergemoe.joint_solves import conjugate_gradients, recursion, rows_solver
from mergemoe.joint_solves.routed_features import RoutedFeatures
from mergemoe.joint_solves.rows import VECTORS, slabs
from mergemoe.merging import feature_rules, output_mixtures, ridge_regression
from mergemoe.merging.group_moments import group_sums
from mergemoe.merging.layer_moments import layer_sums
from mergemoe.methods import catalogue, joint, select, slim
from mergemoe.moe.experts import down_of, joined
from mergemoe.moe.router_rule import Router, Rule


def gigabytes(problem, rows, width=5):
    """The memory that just allows so many rows of the output at once; too little for the direct solve."""
    width += problem.experts.down_bias is not None
    columns = len(problem.groups) * width
    return 8 * columns * (width + 2 + VECTORS * rows) / 1e9


def solution(results):
    return torch.cat([down_of(result.expert) for result in results], 1)


@pytest.fixture(params=CASES.values(), ids=CASES)
def problem(request):
    return problems.problem(**request.param)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(("ridge", "mixtures"), [(1e-4, 256), (0.1, 256), ("auto", 256), ("auto", 3)])
def test_it_is_the_direct_solution_however_many_rows_are_solved_at_once(problem, ridge, mixtures, rows, monkeypatch):
    monkeypatch.setattr(output_mixtures, "MIXTURES", mixtures)
    direct = merge(joint, problem, ridge=ridge)
    found = merge(joint, problem, ridge=ridge, memory=gigabytes(problem, rows))
    mine, its = found[0].record, direct[0].record
    assert mine["residual"] <= 1e-6 and mine["effective_rank"] is None
    assert "residual" not in its and its["effective_rank"] > 0
    assert {key: mine[key] for key in ("ridge", "tokens", "unknowns")} == {
        key: its[key] for key in ("ridge", "tokens", "unknowns")
    }
    assert mine["objective"] == pytest.approx(its["objective"], rel=1e-6)
    if ridge == "auto":
        tried, exact = mine["heldout_error_by_ridge"], its["heldout_error_by_ridge"]
        assert list(tried) == list(exact)[-len(tried) :] and (mixtures == 3 or len(tried) == len(exact))
        rough = 1e-6 if mixtures == 256 else 0.05
        assert tried == pytest.approx({ridge: exact[ridge] for ridge in tried}, rel=rough)
    torch.testing.assert_close(solution(found), solution(direct), rtol=1e-4, atol=1e-5)


def test_the_ridge_does_not_depend_on_how_many_mixtures_are_solved_at_once(monkeypatch):
    """Each alone would stop where its own error rises, some of them at the largest ridge."""
    monkeypatch.setattr(output_mixtures, "MIXTURES", 4)
    problem = problems.problem(tokens=40)
    one, all_ = (merge(joint, problem, memory=gigabytes(problem, rows))[0].record for rows in (1, 4))
    assert one["ridge"] == all_["ridge"] < max(ridge_regression.GRID)


def test_the_residual_is_that_of_the_problem_written_out(problem):
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    p, y = problems.written_out(problem, experts)
    w0 = torch.cat([down_of(expert) for expert in experts], 1).numpy()
    penalty = 0.01 * np.quantile((p**2).sum(0), 0.5, method="lower")
    solved, record = conjugate_gradients.fit(
        problem, experts, RoutedFeatures(problem, experts, 0), 0.01, gigabytes(problem, 7)
    )
    w = solved.downs[0].numpy()
    b = (y - p @ w0.T).T @ p
    residual = np.linalg.norm(b - (w - w0) @ (p.T @ p + penalty * np.eye(p.shape[1]))) / np.linalg.norm(b)
    assert residual == pytest.approx(record["residual"], rel=1e-3)
    assert 1e-9 < residual <= 1e-6


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(5, 120),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0]),
    massive=st.sampled_from([1.0, 1000.0]),
)
def test_the_objective_is_the_direct_ones(seed, tokens, ridge, massive):
    """Penalty included; a neuron that is a thousand times as large as others hides nothing."""
    problem = problems.problem(tokens=tokens, seed=seed)
    problem.experts.up[:, 0] *= massive
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    moments = layer_sums(problem, experts, heldout=False)
    w0 = torch.cat([down_of(expert) for expert in experts], 1)
    penalty = ridge * ridge_regression.typical_energy(moments.gram[0].diagonal())

    def objective(w):  # token by token: a difference of sums as large as these leaves too few digits
        squared = (RoutedFeatures(problem, experts, 0).errors(w)["fit"] or 0.0) * float(moments.energy)
        return squared + penalty * float((w - w0).square().sum())

    passes = RoutedFeatures(problem, experts, 0)
    (found,) = conjugate_gradients.fit(problem, experts, passes, ridge, gigabytes(problem, 7))[0].downs
    assert objective(found) == pytest.approx(
        objective(ridge_regression.solve_toward_prior(moments, w0[None], penalty)[0]), rel=1e-6
    )


def test_it_takes_hardly_more_steps_than_there_are_unknowns():
    """As directions that are conjugate do; steepest descent, which ends, too, takes hundreds here."""
    p = torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = p @ (p * torch.logspace(0, 3, 40, dtype=torch.float64)).T
    blocks = recursion.Blocks.factor(torch.stack([gram[i : i + 4, i : i + 4] for i in (0, 4, 8)]))
    state = recursion.Descent.begin(torch.randn(5, 12, dtype=torch.float64), 1.0)
    state.restart(state.residual, 1.0, blocks, 1.0)
    b = state.residual.clone()
    state.objective.fill_(float(torch.linalg.solve(gram + torch.eye(12), b.T).T.mul(b).sum()) + 1.0)
    assert state.run(lambda v: v @ gram, blocks, 1.0, recursion.TOLERANCE, lambda: None)
    assert int(state.iterations) <= 14  # 12, but for what float32 does to the preconditioner
    torch.testing.assert_close(state.deviation @ (gram + torch.eye(12)), b, rtol=1e-4, atol=1e-5)


def test_where_the_prior_is_exact_it_stays():
    problem = problems.problem(expert_map=range(6))
    found = merge(slim, problem, width=1.0, ridge=0.1, memory=gigabytes(problem, 7))
    torch.testing.assert_close(solution(found), torch.cat(list(problem.experts.down), 1), rtol=1e-12, atol=1e-12)


def test_a_group_that_no_token_reaches_keeps_its_prior():
    problem = problems.problem()
    for tokens in problem.reader.parts.values():
        tokens.weight[torch.isin(tokens.index, torch.tensor([0, 1]))] = 0.0
    result = merge(joint, problem, ridge=0.1, memory=gigabytes(problem, 7))[0]
    (expert,) = feature_rules.merged_experts(problem, [result.group], "usage", 5)
    torch.testing.assert_close(down_of(result.expert), down_of(expert), rtol=1e-12, atol=1e-12)


def test_select_and_slim_hand_the_limit_on():
    problem = problems.problem()
    assert "residual" in merge(select, problem, memory=gigabytes(problem, 7))[0].record
    assert "residual" in merge(slim, problem, width=0.6, memory=gigabytes(problem, 7, width=3))[0].record


@given(hidden=st.integers(1, 9000), width=st.integers(1, 3000), groups=st.integers(1, 300), memory=st.floats(0.01, 100))
def test_all_rows_are_solved_once_and_no_more_at_a_time_than_fit(hidden, width, groups, memory):
    one = 8 * groups * width * (width + 2 + VECTORS)
    if one > memory * 1e9:
        with pytest.raises(UserError, match=r"`memory: .* is too little .* GB\. Raise `memory`"):
            slabs(hidden, width, groups, memory)
        return
    parts = slabs(hidden, width, groups, memory)
    assert [row for slab in parts for row in range(slab.span.start, slab.span.stop)] == list(range(hidden))
    most = max(slab.span.stop - slab.span.start for slab in parts)
    assert 8 * groups * width * (width + 2 + VECTORS * most) <= memory * 1e9


def test_steps_are_bounded_and_the_error_says_what_to_turn(monkeypatch):
    monkeypatch.setattr(recursion, "ITERATIONS", 3)
    problem = problems.problem()
    with pytest.raises(UserError, match=r"residual of 0\.0.* after 3 iterations at ridge 0.0001; .*`ridge`.*`memory`"):
        merge(joint, problem, ridge=1e-4, memory=gigabytes(problem, 7))


def test_what_it_cannot_do_is_refused_before_any_descent(monkeypatch):
    problem = problems.problem()
    monkeypatch.setattr(rows_solver.RowsSolver, "gradient", None)
    with pytest.raises(UserError, match="`ridge: 0` .* `memory: .* above 0"):
        merge(joint, problem, ridge=0.0, memory=gigabytes(problem, 7))
    problem.reader.parts[True] = problems.draw_tokens(0, 6, 7, 2, torch.Generator())
    with pytest.raises(UserError, match="set `holdout` of `calibrate`"):
        merge(joint, problem, ridge="auto", memory=gigabytes(problem, 7))


class Killed(Exception):
    pass


def dies(monkeypatch, after):
    """Count the times that tokens are added up; raise after so many."""
    calls, add = [], rows_solver.add_cross

    def counted(*args):
        if len(calls) == after:
            raise Killed
        calls.append(1)
        add(*args)

    monkeypatch.setattr(rows_solver, "add_cross", counted)
    return calls


def solved(problem, scratch, ridge="auto"):
    return merge(joint, replace(problem, scratch=scratch), ridge=ridge, memory=gigabytes(problem, 4))


@pytest.mark.parametrize("heldout", [False, True])
def test_features_that_are_kept_are_those_that_are_computed_each_time(problem, heldout, monkeypatch):
    experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
    each, kept = (RoutedFeatures(problem, experts, room) for room in (0.0, 1e9))
    assert each.bytes == 0 < kept.bytes
    first = list(each.with_target(heldout)), list(each.features(heldout))
    for _ in range(2):
        assert len(first[0]) > 0 and str(first) == str((list(kept.with_target(heldout)), list(kept.features(heldout))))
        monkeypatch.setattr(problem.reader, "chunks", None)


@pytest.mark.parametrize(("mixtures", "massive"), [(256, 1), (3, 1), (256, 1000)])
def test_a_solve_that_died_goes_on_and_ends_the_same(tmp_path, monkeypatch, mixtures, massive):
    """With a massive neuron the residual must be recomputed more than once."""
    monkeypatch.setattr(output_mixtures, "MIXTURES", mixtures)
    monkeypatch.setattr(rows_solver, "SAVE_EVERY", 0.0)
    problem = problems.problem(tokens=60 if massive > 1 else 150)
    problem.experts.up[:, 0] *= massive
    ridge = "auto" if massive == 1 else 1e-4
    with monkeypatch.context() as patch:
        calls = dies(patch, None)
        whole = solved(problem, tmp_path / "whole", ridge)
    for after in np.linspace(1, len(calls) - 1, 4 if mixtures == 3 else 12).astype(int):
        scratch = tmp_path / str(after)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            dies(patch, after)
            solved(problem, scratch, ridge)
        with monkeypatch.context() as patch:
            again = dies(patch, None)
            patch.setattr(conjugate_gradients.Blocks, "factor", None)  # they are not made again
            found = solved(problem, scratch, ridge)
        assert torch.equal(solution(found), solution(whole))
        assert found[0].record == whole[0].record
        chunks = len(problem.reader.chunks())
        assert len(calls) - after <= len(again) < len(calls) - after + 2 * chunks  # an iteration, or the one look anew


@pytest.mark.parametrize("name", ["blocks", "rows_00000"])
@pytest.mark.parametrize("damage", ["cut off", "another's"])
def test_a_state_that_is_damaged_or_anothers_is_made_anew(tmp_path, name, damage):
    problem = problems.problem()
    whole = solved(problem, tmp_path)
    path = tmp_path / f"{name}.safetensors"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        store.write_state(path, {key: part[:-1] for key, part in store.read_state(path).items()})
    assert torch.equal(solution(solved(problem, tmp_path)), solution(whole))


def test_the_solution_or_the_state_of_a_sibling_is_made_anew(tmp_path):
    problem = problems.problem()
    whole = solved(problem, tmp_path)
    paths = sorted(tmp_path.glob("solution_*"))
    contents = [path.read_bytes() for path in paths]
    assert len(paths) > 2
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert torch.equal(solution(solved(problem, tmp_path)), solution(whole))


def test_a_solution_that_is_damaged_is_made_anew(tmp_path):
    problem = problems.problem()
    whole = solved(problem, tmp_path)
    for path in tmp_path.glob("solution_*"):
        path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(solution(solved(problem, tmp_path)), solution(whole))


DIES = """\
import os, signal, sys
from mergemoe.joint_solves import rows_solver
from stages import solve
calls, add = [], rows_solver.add_cross
rows_solver.SAVE_EVERY = 0.0
def dying(*args):
    calls.append(1)
    if len(calls) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    add(*args)
rows_solver.add_cross = dying
solve.main()
"""


@pytest.mark.full
@pytest.mark.faults
def test_a_killed_stage_goes_on_from_its_scratch_folder_and_removes_it(described, captured, tmp_path):
    layer, made = 1, {"stage": "test"}
    store.write_json(tmp_path / "layout.json", described, made)
    store.write_json(tmp_path / "profile.json", {"layer": layer, "usage": [3, 1, 4, 1, 5, 9, 2, 6]}, made)
    grouping = {"layer": layer, "untouched": False, "expert_map": [0, 0, 1, 2, 2, 2, 3, 1]}
    store.write_json(tmp_path / "cluster.json", grouping, made)
    (tmp_path / "dies.py").write_text(DIES)
    cfg = {"method": "joint", "threads": 1} | catalogue.complete("joint", {"ridge": 0.01, "memory": 0.0003})
    inputs = {"layout": "layout.json", "profile": "profile.json", "cluster": "cluster.json", "capture": captured[layer]}
    by_hand = StageByHand(tmp_path, layer, cfg, inputs)
    killed = by_hand.run("dies.py", out="one/layer.safetensors")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (scratch,) = (tmp_path / "scratch" / "solve").iterdir()
    assert (scratch / "rows_00000.safetensors").is_file()
    done = by_hand.run("-c", "from stages import solve; solve.main()", out="one/layer.safetensors")
    assert done.returncode == 0, done.stderr
    assert not scratch.exists()
    whole = by_hand.run("-m", "stages.solve", out="other/layer.safetensors")
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "one/layer.safetensors").read_bytes() == (tmp_path / "other/layer.safetensors").read_bytes()
    assert (tmp_path / "one/layer.json").read_bytes() == (tmp_path / "other/layer.json").read_bytes()


SIZES = {"expert_map": [0, 0, 1, 2, 3, 4, 5, 6, 7], "hidden_size": 1024, "width": 256}
COLUMNS = 8 * 256


def growth(memory, tokens, answer):
    """Send how far a joint solve's anonymous memory rises; a small one before it has started all that it needs."""
    torch.set_num_threads(1)
    small, large = problems.problem(), problems.problem(**SIZES, tokens=tokens)
    merge(joint, small, memory=gigabytes(small, 7))
    merge(joint, small)
    answer.send(memory_growth(lambda: merge(joint, large, ridge=0.1, memory=memory)))


@pytest.mark.full
@pytest.mark.parametrize(
    ("limit", "tokens"), [(0.022, 64), (0.303, 64), (0.063, 900)], ids=["iterative", "direct", "kernel"]
)
def test_the_memory_held_is_what_the_limit_allows_and_the_solution(limit, tokens):
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=growth, args=(limit, tokens, its))
    process.start()
    its.close()
    grown = mine.recv()
    process.join()
    down = 8 * 1024 * COLUMNS
    assert limit * 1e9 / 2 < grown < limit * 1e9 + 4 * down + 10 * MB


def test_with_few_tokens_auto_takes_what_is_nearer_to_the_held_out_outputs():
    taken = set()
    for seed in range(6):
        problem = problems.problem(tokens=20, seed=seed)
        experts = feature_rules.merged_experts(problem, problem.groups, "usage", 5)
        fitted, unseen = (group_sums(problem, problem.groups, joined(experts), heldout=part) for part in (False, True))
        by_group = ridge_regression.fit(fitted, unseen, torch.stack([down_of(expert) for expert in experts]), "auto", 1)
        error = RoutedFeatures(problem, experts, 0).errors(torch.cat(tuple(by_group.downs), 1))["heldout"]
        results = merge(joint, problem)
        record = results[0].record
        assert record["heldout_error"]["routed"] == pytest.approx(error, rel=1e-9)
        assert record["objective"]["heldout"] == min(record["heldout_error"].values())
        if record["solved"] == "routed":
            torch.testing.assert_close(solution(results), torch.cat(tuple(by_group.downs), 1))
            assert record["ridge"] == by_group.ridge and record["heldout_error_by_ridge"] == by_group.tried
        else:
            assert record["objective"]["heldout"] == min(record["heldout_error_by_ridge"].values())
        again = merge(joint, problem, memory=gigabytes(problem, 9))[0].record
        assert again["solved"] == record["solved"]
        assert again["heldout_error"] == pytest.approx(record["heldout_error"], rel=1e-6)
        assert "solved" not in merge(joint, problem, memory=gigabytes(problem, 1))[0].record  # no room for both
        taken.add(record["solved"])
    assert taken == {"joint", "routed"}


def drawn_router():
    rows = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Router(Rule("softmax", 2, normalized=True), rows)


def test_that_choice_is_made_only_with_few_tokens_by_auto_and_behind_the_layers_own_router():
    few, enough = problems.problem(tokens=20), problems.problem(tokens=40)
    assert "solved" in merge(joint, few)[0].record
    assert "solved" not in merge(joint, few, ridge=0.1)[0].record
    assert "solved" not in merge(joint, enough)[0].record
    router = drawn_router()
    assert "solved" not in merge(joint, few.with_router(router))[0].record


def test_behind_another_router_it_is_the_direct_solution_too():
    router = drawn_router()
    problem = problems.problem().with_router(router)
    direct, found = (merge(joint, problem, ridge=0.01, memory=gb) for gb in (8.0, gigabytes(problem, 5)))
    assert found[0].record["objective"] == pytest.approx(direct[0].record["objective"], rel=1e-6)
    torch.testing.assert_close(solution(found), solution(direct), rtol=1e-4, atol=1e-5)
