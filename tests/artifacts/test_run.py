"""The names of runs."""

import re

import pytest

from mergemoe.artifacts import paths
from mergemoe.artifacts.run import Run

PLAIN = Run("demo", "mixed", "pairs", "select")
REFINED = Run("demo", "mixed", "pairs", "select", "tuned")
QUANTIZED = Run("demo", "mixed", "pairs", "select", None, "q4")
BOTH = Run("demo", "mixed", "pairs", "select", "tuned", "q4")


def test_a_run_is_named_by_its_path_with_what_was_added_at_the_end():
    assert (PLAIN.name, PLAIN.subject, PLAIN.solution) == ("demo/mixed/pairs/select", "mixed/pairs/select", "select")
    assert REFINED.name == "demo/mixed/pairs/select+tuned"
    assert (QUANTIZED.name, BOTH.name) == ("demo/mixed/pairs/select@q4", "demo/mixed/pairs/select+tuned@q4")


@pytest.mark.parametrize("run", [PLAIN, REFINED, QUANTIZED, BOTH])
def test_a_listed_run_is_the_run_and_has_no_name_at_the_end_for_what_it_does_without(run):
    assert Run(*run.listed) == run
    assert run.listed[-1] is not None and [*run.choices.values()] == list(filter(None, run.listed))


@pytest.mark.parametrize("run", [PLAIN, REFINED, QUANTIZED, BOTH])
def test_the_paths_of_a_run_are_made_of_its_wildcards_and_match_their_patterns(run):
    assert paths.MODEL.format(**run.wildcards) == f"results/models/{run.name}"
    assert paths.MODEL.format(**run.wildcards) == paths.SUBJECT_MODEL.format(model=run.model, subject=run.subject)
    assert all(re.fullmatch(paths.PATTERNS[name], value) for name, value in run.wildcards.items())
    assert re.fullmatch(paths.PATTERNS["subject"], run.subject)


def test_what_lies_upstream_of_a_refine_is_shared():
    names = [run.wildcards | {"layer": "003"} for run in (PLAIN, REFINED)]
    assert len({paths.SOLVED.format(**one) for one in names}) == 1
    assert paths.REFINED.format(**names[1]) == "results/refine/demo/mixed/pairs/select/tuned/layer_003.safetensors"


def test_what_lies_upstream_of_a_quantization_is_shared():
    names = [run.wildcards | {"layer": "003"} for run in (REFINED, BOTH)]
    assert len({paths.REFINED.format(**one) for one in names}) == 1
    place = "results/quantize/demo/mixed/pairs/select+tuned/q4/layer_003.safetensors"
    assert paths.QUANTIZED.format(**names[1]) == place


@pytest.mark.parametrize(
    "subject",
    [
        "mixed/pairs/",
        "mixed/pairs/select+",
        "mixed/pairs/a+b+c",
        "mixed/pairs/a@",
        "mixed/pairs/a@b+c",
        "mixed/pairs/a-b",
    ],
)
def test_other_paths_are_no_runs(subject):
    assert not re.fullmatch(paths.PATTERNS["subject"], subject)
