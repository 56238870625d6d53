"""A near-tie is a decision that rounding turned: its inputs are as recorded, and its goals differ by rounding only."""

import time

import pytest

from mergemoe.workflow.comparison.bounds import GOAL_BOUNDS
from mergemoe.workflow.comparison.ties import CHOICES, near_ties

CAPTURE = "results/capture/m/c/layer_00{}.h5".format
CLUSTER, SOLVED, RECORD = (
    f"results/{name}"
    for name in ("cluster/m/c/g/layer_001.json", "solve/m/c/g/s/layer_001.safetensors", "solve/m/c/g/s/layer_001.json")
)
MODEL = "results/models/m/c/g/s/model.safetensors"
SCORE = "results/scores/m/c/g/s/generation.json"
INPUTS = {
    CAPTURE(1): ["results/layout/m.json"],
    CAPTURE(2): ["results/layout/m.json"],
    CLUSTER: [CAPTURE(1)],
    SOLVED: [CAPTURE(1), CLUSTER],
    RECORD: [CAPTURE(1), CLUSTER],
    MODEL: [SOLVED],
    SCORE: ["results/models/m/c/g/s/provenance.json"],
    "results/scores/m/full/reference/layer_001.h5": [],
    "results/scores/m/full/reference/final.safetensors": [],
}
STAGES = {path: path.split("/")[1].replace("models", "assemble").replace("scores", "evaluate") for path in INPUTS}
ROUTED = {"expert_index.N": None, "chosen.N": 5e-3, "router_logits.N": 1e-7}
REGROUPED = {"expert_map of 0, 3": None, "groups.members": None, "groups.share": 0.1, "cost": 1e-8}


def judged(differences, parts=None):
    stages = {name: {"apart": {}} for name in STAGES.values()}
    for path, found in differences.items():
        stages[STAGES[path]]["apart"][path] = {
            "decisions": [part for part, size in found.items() if size is None],
            "numbers": {part: size for part, size in found.items() if size is not None},
        }
    known = [goal for choice in CHOICES.values() for goal in choice.goals]
    return near_ties(stages, INPUTS.__getitem__, lambda _: known if parts is None else parts)


def test_numbers_that_differ_by_rounding_are_no_ties():
    assert judged({CAPTURE(1): {"hidden.N": 1e-7}, SOLVED: {"down.N": 1e-5}}) == ({}, [])


def test_a_token_that_chooses_the_other_of_two_equal_experts_is_told():
    found = judged({CAPTURE(1): ROUTED})
    assert found.by_scores == [CAPTURE(1)]
    said = f"{CAPTURE(1)}: other about 1.3e-05 of the choices of experts, expert_index.N; router_logits.N and hidden.N"
    assert found.words[CAPTURE(1)] == f"{said} the same but for 1.0e-07"


def test_two_groupings_of_one_cost_are_told_with_the_experts():
    found = judged({CLUSTER: REGROUPED})
    assert list(found.words) == [CLUSTER] and "other expert_map of 0, 3, groups.members" in found.words[CLUSTER]
    assert found.words[CLUSTER].endswith("cost the same but for 1.0e-08")


def test_a_layer_with_other_neurons_and_the_same_error_is_told_by_its_record():
    weights = {"gate.N": 0.2, "up.N": 0.2, "down.N": 0.3}
    found = judged({SOLVED: weights, RECORD: {"groups.ridge": 0.9, "output_error.fit": 1e-6}})
    assert list(found.words) == [SOLVED, RECORD] and "the same but for 1.0e-06" in found.words[SOLVED]
    assert judged({SOLVED: weights, RECORD: {"output_error.fit": 1e-5}}) == ({}, [])
    assert judged({SOLVED: weights, RECORD: {"the file": None}}) == ({}, [])
    assert judged({SOLVED: weights, RECORD: {"groups.ridge": 0.9}}) == ({}, [])
    assert judged({SOLVED: {"down.N": 0.51}, RECORD: {"output_error.fit": 1e-6}}) == ({}, [])
    nan = {"output_error.fit": 1e-6, "output_error.heldout": float("nan")}
    assert SOLVED not in judged({SOLVED: weights, RECORD: nan}).words


@pytest.mark.parametrize("stage", CHOICES)
def test_goals_may_differ_by_rounding_and_no_more(stage):
    path = {"refine": SOLVED, "quantize": SOLVED}.get(stage) or next(p for p, name in STAGES.items() if name == stage)
    goal = CHOICES[stage].goals[0]
    part = {"capture": "expert_index.N", "evaluate": "expert_index.N", "cluster": "expert_map of 0, 1"}.get(
        stage, "up.N"
    )
    record = path.replace(".safetensors", ".json")
    for factor, ties in ((1.0, True), (1.01, False)):
        apart = {path: {"decisions": [], "numbers": {part: 0.5}}, record: {"decisions": [], "numbers": {}}}
        apart[record]["numbers"] = apart[record]["numbers"] | {goal: factor * GOAL_BOUNDS[stage]}
        apart[path]["decisions"] = [] if part == "up.N" else [part]
        found = near_ties({stage: {"apart": apart}}, lambda _: [], lambda _: [goal])
        assert (path in found.words) == ties


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (CLUSTER, {**REGROUPED, "cost": 1e-3}),  # a worse grouping
        (CLUSTER, {**REGROUPED, "kept": None}),  # a setting
        (CLUSTER, {part: size for part, size in REGROUPED.items() if part != "cost"}),  # nothing was rounded otherwise
        (CAPTURE(1), {"expert_index.N": None, "chosen.N": 5e-3}),
        (CAPTURE(1), {**ROUTED, "chosen.N": 0.16}),  # more tokens than can nearly tie
        (CLUSTER, {**REGROUPED, "cost": float("nan")}),
        (CAPTURE(1), {**ROUTED, "router_logits.N": 1e-4}),  # other logits
        (CAPTURE(1), {**ROUTED, "sequence.N": None}),
        (SOLVED, {"expert_map": None}),  # that is the grouping's
        (RECORD, {"groups.members": None}),
        (MODEL, {"model.layers.N.mlp.experts.N.up_proj.weight": 0.5}),  # nothing is chosen there
    ],
)
def test_whatever_rounding_does_not_explain_is_no_tie(path, found):
    assert judged({path: found}) == ({}, [])


def test_without_its_goals_nothing_is_a_tie():
    assert judged({CLUSTER: {"expert_map of 0, 3": None}}, parts=["expert_map"]) == ({}, [])


def test_what_follows_from_a_tie_is_judged_by_scores():
    solved, merged = {"down.N": 0.5, "groups": None}, {"x": 0.5}
    scored = {"continuations.text of 0, 1": None, "parts.*.acc": 0.5}
    found = judged(
        {CLUSTER: REGROUPED, SOLVED: solved, RECORD: {"output_error.fit": 0.1}, MODEL: merged, SCORE: scored}
    )
    assert list(found.words) == [CLUSTER] and found.by_scores == [CLUSTER, SOLVED, RECORD, MODEL, SCORE]


def test_what_follows_from_a_worse_grouping_is_not():
    assert judged({CLUSTER: {**REGROUPED, "cost": 0.1}, SOLVED: {"down.N": 0.5}, MODEL: {"x": 0.5}}) == ({}, [])


def test_layers_above_a_tie_follow_and_layers_below_do_not():
    found = judged({CAPTURE(1): {"hidden.N": 1e-7}, CAPTURE(2): ROUTED})
    assert found.by_scores == [CAPTURE(2)]
    found = judged({CAPTURE(1): ROUTED, CAPTURE(2): {"hidden.N": 0.1, "expert_index.N": None}})
    assert list(found.words) == [CAPTURE(1)] and found.by_scores == [CAPTURE(1), CAPTURE(2)]


@pytest.mark.parametrize(
    ("run", "continued", "ties"),
    [("s", "1", True), ("s", "1, 5", False), ("s+tuned", "1, 5", True), ("s+tuned@q4", "0, 1", True)],
)
def test_a_greedy_continuation_may_be_another_and_several_after_a_descent(run, continued, ties):
    path = f"results/scores/m/c/g/{run}/generation.json"
    text = f"continuations.text of {continued}"
    for more in ([], ["continuations.prompt"]):
        apart = {path: {"decisions": [text, *more], "numbers": {}}}
        found = near_ties({"evaluate": {"apart": apart}}, lambda _: [], lambda _: [])
        told = {path: f"{path}: other {text}, where two tokens nearly tie"}
        assert found.words == (told if ties and not more else {})


def test_results_that_name_each_other_are_no_ties():
    apart = {CLUSTER: {"decisions": ["by"], "numbers": {}}, SOLVED: {"decisions": [], "numbers": {}}}
    inputs = {CLUSTER: [SOLVED], SOLVED: [CLUSTER]}
    assert near_ties({"cluster": {"apart": apart}}, inputs.__getitem__, lambda _: ["cost"]) == ({}, [])


def test_a_capture_of_many_layers_is_judged_in_seconds():
    paths = [f"results/capture/m/c/layer_{i:04d}.h5" for i in range(3000)]
    apart = {path: {"decisions": ["expert_index.N"], "numbers": {"router_logits.N": 1e-7}} for path in paths}
    start = time.process_time()
    found = near_ties({"capture": {"apart": apart}}, lambda _: ["results/layout/m.json"], lambda _: ["router_logits.N"])
    assert found.by_scores == paths and list(found.words) == paths[:1]
    assert time.process_time() - start < 5


def test_the_last_states_of_the_full_model_follow_from_a_tie_in_a_layer():
    layer, last = "results/scores/m/full/reference/layer_001.h5", "results/scores/m/full/reference/final.safetensors"
    assert judged({last: {"final.N": 0.1}, layer: ROUTED}).by_scores == [last, layer]
