"""The verdict of an audit: every bound from both sides, and what no bound excuses."""

import pytest

from mergemoe.artifacts.stages import STAGES
from mergemoe.workflow.comparison import bounds
from mergemoe.workflow.comparison.bounds import BOUNDS
from mergemoe.workflow.comparison.verdict import largest, reasons, verdict

STAGE = {"as_recorded": True, "faults": [], "other_bytes": [], "apart": {}, "ties": [], "by_scores": []}


def findings(stage="solve", *, identical=False, strays=(), metrics=None, **changes):
    return {
        "identical": identical,
        "stages": {stage: STAGE | changes},
        "strays": list(strays),
        "metrics": {"differ": metrics or {}},
    }


def apart(size, decisions=()):
    return {"results/x": {"decisions": list(decisions), "numbers": {"down": size}}}


def test_what_is_identical_is_called_so():
    assert verdict(findings(identical=True)) == "identical"


@pytest.mark.parametrize(("stage", "bound"), BOUNDS.items())
def test_numbers_may_differ_up_to_the_stages_bound(stage, bound):
    within, beyond = (findings(stage, as_recorded=False, apart=apart(size)) for size in (bound, 1.01 * bound + 1e-12))
    assert verdict(within) == "equivalent" and reasons(within) == []
    assert verdict(beyond) == "different"
    assert f"results/x: down differs by {1.01 * bound + 1e-12:.1e} of its norm" in reasons(beyond)[0]


EXPERTS, COPIED = "model.layers.0.mlp.experts.N.up_proj.weight", "model.embed_tokens.weight"
OWN_BOUNDS = [
    ("evaluate", "results/scores/m/full/blimp.json", "parts.*.acc", bounds.ANSWERS),
    ("evaluate", "results/scores/m/a/b/c/fidelity.json", "parts.*.output_error", bounds.ERRORS),
    ("solve", "results/solve/m/a/b/c/layer_000.json", "groups.condition", bounds.CONDITION),
    ("assemble", "results/models/m/a/b/c/model.safetensors", EXPERTS, BOUNDS["solve"]),
    ("assemble", "results/models/m/a/b/c+d/model.safetensors", EXPERTS, BOUNDS["assemble"]),
    ("assemble", "results/models/m/a/b/c@d/model.safetensors", EXPERTS, BOUNDS["assemble"]),
    ("assemble", "results/models/m/a/b/c+d/model.safetensors", COPIED, 0.0),
    ("assemble", "results/models/m/a/b/c+d/model.safetensors", "model.layers.0.mlp.shared_expert.up_proj.weight", 0.0),
]


@pytest.mark.parametrize(("stage", "path", "part", "most"), OWN_BOUNDS)
def test_some_parts_have_bounds_of_their_own(stage, path, part, most):
    for size, said in ((most, "equivalent"), (1.01 * most + 1e-12, "different")):
        found = findings(stage, apart={path: {"decisions": [], "numbers": {part: size}}})
        assert verdict(found) == said
    assert (largest(found["stages"][stage]) == 0.0) == (stage == "evaluate")  # of scores metrics.json tells


@pytest.mark.parametrize(
    ("path", "part", "free"),
    [
        ("results/models/m/a/b/c/model.safetensors", EXPERTS, True),
        ("results/models/m/a/b/c/model.safetensors", "model.layers.0.mlp.experts.expert_map of 3", True),
        ("results/models/m/a/b/c/model.safetensors", COPIED, False),
        ("results/models/m/a/b/c/modeling_mergemoe.py", "the file", False),
        ("results/models/m/a/b/c/config.json", "the file", False),
        ("results/scores/m/a/b/c/blimp.json", "parts.*.acc", True),
        ("results/scores/m/a/b/c/generation.json", "continuations.text of 0, 1", True),
        ("results/scores/m/a/b/c/generation.json", "continuations.prompt", False),
        ("results/scores/m/a/b/c/blimp.json", "samples", False),
        ("results/scores/m/a/b/c/blimp.json", "parts.b.samples", False),
        ("results/scores/m/a/b/c/blimp.json", "settings.include", False),
        ("results/solve/m/a/b/c/layer_000.safetensors", "groups", True),
        ("results/solve/m/a/b/c/layer_000.json", "groups.members", True),
        ("results/solve/m/a/b/c/layer_000.json", "method", False),
        ("results/solve/m/a/b/c/layer_000.json", "made from", False),
    ],
)
def test_of_what_follows_from_a_near_tie_only_what_is_chosen_is_free(path, part, free):
    for decisions, numbers in (([part], {}), ([], {part: 9.0})):
        one = {path: {"decisions": decisions, "numbers": numbers}}
        assert verdict(findings("solve", apart=one, by_scores=[path])) == ("equivalent" if free else "different")


def test_counts_are_never_rounded_and_one_answer_may_be_another():
    key = "m/a/b/mergemoe cost/parameters"
    assert verdict(findings(metrics={key: [1000, 1000, None]})) == "equivalent"
    assert verdict(findings(metrics={key: [100000, 100001, None]})) == "different"
    error = (0.7 * 0.3 / 99) ** 0.5  # of 100 answers
    for answers, said in ((1, "equivalent"), (2, "different")):
        assert verdict(findings(metrics={"m/a/b/mergemoe blimp/acc": [0.7, 0.7 - 0.01 * answers, error]})) == said


def test_a_key_of_a_metric_may_have_blanks():
    assert verdict(findings(metrics={"m/full my own score": [2.0, 3.0, None]})) == "different"


def test_every_stage_that_dvc_locks_has_a_bound_but_the_report():
    assert {stage.dvc for stage in STAGES.values()} - {None, "report"} == BOUNDS.keys()


@pytest.mark.parametrize("size", [float("nan"), float("inf")])
def test_what_is_no_size_is_beyond_every_bound(size):
    assert verdict(findings(as_recorded=False, apart=apart(size))) == "different"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"apart": apart(0.0, ["groups.members"])}, "results/x: groups.members is another"),
        ({"faults": ["results/x does not hold what was written"]}, "does not hold"),
        ({"other_bytes": ["data/text.jsonl"]}, "data/text.jsonl is not the recorded file"),
    ],
)
def test_no_bound_excuses_a_decision_a_fault_or_another_input(changes, said):
    found = findings(as_recorded=False, **changes)
    assert verdict(found) == "different" and said in reasons(found)[0]


def test_a_result_of_no_run_is_different():
    assert verdict(findings(strays=["results/y belongs to no run"])) == "different"


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("m/a/b/mergemoe fidelity/kl", 0.1),
        ("m/a/b/mergemoe blimp/acc", 0.1),
        ("m/a/b/mergemoe generation/loops", 0.5),
        ("m/a/b/select+tuned fidelity/kl", 0.5),
    ],
)
def test_scores_may_differ_by_a_share_of_their_standard_error(key, most):
    for factor, said in ((0.99, "equivalent"), (1.01, "different"), (-0.99, "equivalent"), (-1.01, "different")):
        assert verdict(findings(metrics={key: [2.0, 2.0 + factor * most * 0.03, 0.03]})) == said


def test_numbers_without_a_standard_error_may_differ_by_a_thousandth():
    for factor, said in ((0.99, "equivalent"), (1.01, "different")):
        assert verdict(findings(metrics={"m/full fidelity/mb": [2.0, 2.0 + factor * 2e-3, None]})) == said
    for factor, said in ((0.99, "equivalent"), (1.01, "different")):  # a standard error, by a tenth of itself
        assert verdict(findings(metrics={"m/full fidelity/kl_stderr": [2.0, 2.0 + factor * 0.2, None]})) == said
    assert verdict(findings(metrics={"m/full fidelity/kl": [None, 2.5, None]})) == "different"


def after_a_tie(tied, key, row):
    found = findings("assemble", metrics={key: row}, apart={tied: {"decisions": [], "numbers": {}}}, by_scores=[tied])
    return verdict(found)


@pytest.mark.parametrize(
    ("tied", "key", "follows"),
    [
        ("results/models/m/a/b/mergemoe/model.safetensors", "m/a/b/mergemoe fidelity/kl", True),
        ("results/models/m/a/b/mergemoe/model.safetensors", "m/a/b/reap fidelity/kl", False),
        ("results/models/m/a/b/mergemoe/model.safetensors", "m/a/b/mergemoe2 fidelity/kl", False),
        ("results/scores/m/full/reference/layer_001.h5", "m/a/b/reap fidelity/kl", True),
        ("results/scores/m/full/reference/layer_001.h5", "m/full fidelity/perplexity", True),
        ("results/scores/m/full/reference/layer_001.h5", "m2/full fidelity/perplexity", False),
    ],
)
def test_scores_that_follow_from_a_near_tie_may_differ_by_half_of_their_standard_error(tied, key, follows):
    wide, narrow = (0.5, 1e-2), (0.1, 1e-3)
    error, relative = wide if follows else narrow
    for factor, said in ((0.99, "equivalent"), (1.01, "different")):
        assert after_a_tie(tied, key, [2.0, 2.0 + factor * error * 0.03, 0.03]) == said
        assert after_a_tie(tied, key, [2.0, 2.0 + factor * relative * 2, None]) == said


def test_numbers_of_a_near_tie_and_what_follows_are_not_judged():
    assert (
        verdict(findings(as_recorded=False, apart=apart(9.0, ["groups.members"]), by_scores=["results/x"]))
        == "equivalent"
    )
    assert verdict(findings(as_recorded=False, apart=apart(9.0), by_scores=["results/y"])) == "different"
