"""What is named as missing, on a synthetic study."""

from pathlib import Path

import pytest
import synthetic

from mergemoe.artifacts.stage import Holds, Stage
from mergemoe.artifacts.stages import STAGES
from mergemoe.report import metrics, missing_results, study

RUN = "mixed/half/mergemoe"


@pytest.fixture
def results(tmp_path):
    return synthetic.build(tmp_path / "results")


def log(results, path, text):
    file = results.parent / "logs" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def found(results):
    return [
        tuple(one)
        for one in missing_results.find_missing(results, results.parent / "logs", synthetic.RUNS, synthetic.TASKS)
    ]


@pytest.fixture
def whole(results):
    """The study with the artifacts that the report does not read, but a run comes by."""
    for path in ["calibrate/demo/mixed/tokens.json", "capture/demo/mixed"]:
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        (results / path).touch()
    return results


def test_a_whole_study_has_no_holes(whole):
    assert found(whole) == []


def test_a_missing_score_is_told_by_its_error_or_its_last_line(whole):
    for task in synthetic.TASKS:
        (whole / f"scores/demo/{RUN}/{task}.json").unlink()
    log(whole, f"evaluate/demo/{RUN}/blimp.log", "loading\nerror: evaluate.tasks.blimp: no data\nshutting down\n")
    log(whole, f"fidelity/demo/{RUN}.log", "Traceback:\n  File x\nValueError: what\n\n")
    assert found(whole) == [
        ("demo", RUN, "blimp", "error: evaluate.tasks.blimp: no data"),
        ("demo", RUN, "fidelity", "ValueError: what"),
    ]


def test_a_run_without_its_model_has_one_hole_the_first_on_its_way(whole):
    for path in (f"solve/demo/{RUN}/layer_001.json", f"models/demo/{RUN}/provenance.json"):
        (whole / path).unlink()
    log(whole, f"solve/demo/{RUN}/layer_001.log", "error: solve.mergemoe: no memory\n")
    hole = f"solve demo/{RUN}/layer_001", "error: solve.mergemoe: no memory"
    assert found(whole) == [("demo", RUN, *hole), ("demo", f"{RUN}+tuned", *hole)]
    made = [run for run in synthetic.RUNS if missing_results.assembled(whole, run)]
    assert made == [run for run in synthetic.RUNS if run.subject != RUN]


def test_a_layer_that_was_not_refined_is_missed_by_the_refined_run_alone(whole):
    (whole / f"refine/demo/{RUN}/tuned/layer_001.json").unlink()
    assert found(whole) == [("demo", f"{RUN}+tuned", f"refine demo/{RUN}/tuned/layer_001", "not run")]


def test_a_budget_that_failed_comes_before_the_groups_that_wait_for_it(whole):
    (whole / f"models/demo/{RUN}/provenance.json").unlink()
    (whole / "cluster/demo/mixed/half/layer_000.json").unlink()
    assert found(whole)[-1][2:] == ("cluster demo/mixed/half/layer_000", "not run")
    log(whole, "budget/demo/mixed/half.log", "error: no size in common\n")
    assert found(whole)[-1][2:] == ("budget demo/mixed/half", "error: no size in common")


def test_a_stage_that_was_added_to_the_table_is_missed(whole, monkeypatch):
    output = "results/toy/{model}/{calibrate}/layer_{layer}.json"
    monkeypatch.setitem(STAGES, "toy", Stage(name="toy", output=output, dvc="toy", holds=Holds(base=0)))
    assert found(whole)[0][2:] == ("toy demo/mixed/layer_000", "not run")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not run"),
        ("", "killed, or running; its log is empty"),
        ("scores: 3 of 9\n", "killed, or running; its log ends with: scores: 3 of 9"),
        (
            "Requests: 0%|  | 0/64\rRequests: 3%|  | 2/64",
            "killed, or running; its log ends with: Requests: 3%|  | 2/64",
        ),
        ("Traceback (most recent call last):\n  x\nRuntimeError: what\nRequests: 3%|  | 2/64\n", "RuntimeError: what"),
        ("x\nCPU time: 1.0 s\n", "made once, and not there now"),
    ],
)
def test_a_log_without_an_error_is_told_for_what_it_is(whole, text, said):
    (whole / f"scores/demo/{RUN}/blimp.json").unlink()
    if text is not None:
        log(whole, f"evaluate/demo/{RUN}/blimp.log", text)
    assert found(whole) == [("demo", RUN, "blimp", said)]


def test_what_is_there_is_gathered_and_what_is_not_is_left_out(whole):
    (whole / f"scores/demo/{RUN}/blimp.json").unlink()
    numbers = metrics.gather_scores(whole, synthetic.RUNS, synthetic.TASKS, Path.exists)
    assert "blimp/acc" not in numbers["demo"]["runs"][RUN] and "fidelity/kl" in numbers["demo"]["runs"][RUN]
    assert "blimp/acc" in numbers["demo"]["full"]
    assert list(study.load_study(whole, synthetic.RUNS, synthetic.TASKS, numbers, Path.exists)[0].tasks) == ["fidelity"]
