"""The verdict of an audit: every bound from both sides, and what no bound excuses."""

import pytest

from mergemoe.artifacts.stages import STAGES
from mergemoe.workflow.comparison.bounds import BOUNDS, PARTS_OF_SCORES
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


@pytest.mark.parametrize("size", [PARTS_OF_SCORES, 1.01 * PARTS_OF_SCORES])
def test_scores_of_parts_have_a_bound_of_their_own(size):
    path = "results/scores/m/full/blimp.json"
    found = findings("evaluate", apart={path: {"decisions": [], "numbers": {"parts.*.acc": size}}})
    assert verdict(found) == ("equivalent" if size == PARTS_OF_SCORES else "different")
    assert largest(found["stages"]["evaluate"]) == 0.0  # of which metrics.json tells


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
