"""The gathered numbers, on a synthetic study."""

import json
import shutil

import pytest
import synthetic

from mergemoe.errors import UserError
from mergemoe.report import metrics


@pytest.fixture
def results(tmp_path):
    return synthetic.build(tmp_path / "results")


@pytest.fixture
def gathered(results):
    return metrics.gather_scores(results, synthetic.RUNS, synthetic.TASKS)


def test_every_score_and_cost_is_there_and_nothing_else(gathered):
    demo = gathered["demo"]
    assert list(demo["runs"]) == [run.subject for run in synthetic.RUNS]
    outside, expert = 40, 4 * 6
    assert demo["full"] == {
        "blimp/acc": 0.7012,
        "blimp/acc_stderr": 0.0132,
        "fidelity/perplexity": 81.93,
        "cost/parameters": 2 * outside + 2 * 8 * expert,
        "cost/bytes": 4 * (2 * outside + 2 * 8 * expert),
        "cost/flops_per_token": 2.0 * (outside + 2 * 2 * expert),
    }
    assert demo["runs"]["mixed/half/mergemoe"]["fidelity/kl"] == 0.2503
    assert demo["runs"]["mixed/half/mergemoe"]["cost/bytes"] == 4 * (2 * outside + 2 * 4 * expert)


def test_the_text_is_sorted_and_reads_back_the_same(gathered):
    text = metrics.metrics_text(gathered)
    assert json.loads(text) == gathered
    assert text.endswith("}\n")
    assert text.index('"blimp/acc"') < text.index('"cost/bytes"') < text.index('"fidelity/kl"')


def test_a_missing_score_is_named(results):
    path = results / "scores/demo/mixed/half/average/blimp.json"
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        metrics.gather_scores(results, synthetic.RUNS, synthetic.TASKS)


def test_the_sizes_are_those_that_the_jobs_sealed(gathered, results):
    for folder in (results / "models/demo/mixed/half/average", results.parent / "demo-moe"):
        shutil.copyfile(results / "models/demo/mixed/quarter/mergemoe/model.safetensors", folder / "model.safetensors")
    assert metrics.gather_scores(results, synthetic.RUNS, synthetic.TASKS) == gathered


def test_a_layout_of_an_older_version_is_named(results):
    synthetic.write(results / "layout/demo.json", {"path": "demo", "layers": []})
    with pytest.raises(UserError, match="layout/demo.json has no cost"):
        metrics.gather_scores(results, synthetic.RUNS, synthetic.TASKS)


def test_a_score_that_is_no_number_is_named(results):
    synthetic.score(results / "scores/demo/full", {"acc": None}, {"perplexity": 81.93})
    with pytest.raises(UserError, match="full/blimp.json gives None for acc"):
        metrics.gather_scores(results, synthetic.RUNS, synthetic.TASKS)


def test_the_winner_has_the_lowest_kl_among_the_smallest():
    def run(size: int, kl: float) -> dict[str, float]:
        return {"cost/bytes": size, "fidelity/kl": kl}

    runs = {"a": run(1000, 0.3), "b": run(1009, 0.2), "c": run(1011, 0.1), "d": run(2000, 0.0)}
    assert metrics.winner({"runs": runs}) == "b"
    assert metrics.winner({"runs": {"a": {"cost/bytes": 1000}}}) is None


def test_a_task_without_accuracy_shows_all_its_scores():
    full = {"a/acc": 1, "a/acc_norm": 1, "b/f1": 1, "b/f1_stderr": 1, "fidelity/output_error": 1, "fidelity/kl": 1}
    assert metrics.columns({"m": {"full": full, "runs": {}}}) == ["fidelity/kl", "a/acc", "b/f1"]


def test_generation_is_no_column():
    full = {f"generation/{name}": 1.0 for name in ("loops", "loops_stderr", "distinct2")} | {"fidelity/kl": 1.0}
    assert metrics.columns({"m": {"full": full, "runs": {}}}) == ["fidelity/kl"]
    assert metrics.generation(full) == {"generation/loops", "generation/distinct2"}


def test_a_card_explains_generation_where_it_was_measured(gathered):
    run, full = gathered["demo"]["runs"]["mixed/half/mergemoe"], gathered["demo"]["full"]
    tasks = {"fidelity": {"samples": 9}}
    assert "`generation`" not in metrics.scores_markdown(run, full, tasks)
    text = metrics.scores_markdown(run | {"generation/loops": 0.25}, full, tasks | {"generation": {"samples": 4}})
    assert "| generation/loops | – | 0.250 |" in text
    assert "`generation` continues held-out prompts greedily" in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.25031, None, "0.250"),
        (0.0016, None, "0.00160"),
        (81.93, None, "81.9"),
        (1392.4, None, "1,392"),
        (100.0, None, "100"),
        (0, None, "0"),
        (None, None, "–"),
        (0.7012, 0.0132, "0.701 ± 0.013"),
        (192.31, 10.9, "192 ± 11"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, error, text):
    assert metrics.shown(value, error) == text


def test_the_table_has_a_line_per_model_and_run(gathered):
    head, full, *runs = metrics.scores_table(gathered).splitlines()
    assert head.split() == ["MB", "share", "kl", "perplexity", "top1", "blimp/acc"]
    assert full.split() == ["demo", "0.00186", "100%", "–", "81.9", "–", "0.701", "±", "0.013"]
    assert [run.split()[0] for run in runs] == list(gathered["demo"]["runs"])
