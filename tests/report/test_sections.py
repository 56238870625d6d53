"""What the sections of the report say."""

from types import SimpleNamespace
from typing import Any

import synthetic

from mergemoe.report import sections, token_sufficiency


def test_a_layer_is_told_by_its_worst_fit():
    told = token_sufficiency.worst({"layer": 3, "groups": synthetic.fits(3, 4)}, {"fit": 0.25, "heldout": 0.5})
    assert told == {
        "layer": 3,
        "merged": 4,
        "fit": (1565, 6),
        "rank": 5,
        "effective_rank": None,
        "condition": 30.0,
        "errors": [0.25, 0.5],
        "ratio": 2.0,
    }


def test_a_layer_solved_as_a_whole_is_told_by_the_layers_tokens():
    groups = [{"tokens": 50, "unknowns": 8, "layer_tokens": 90, "layer_unknowns": 16}] * 2
    told = token_sufficiency.worst({"layer": 0, "groups": groups}, {"fit": 0.5, "heldout": None})
    assert (told["fit"], told["ratio"]) == ((90, 16), None)


def test_scores_beyond_a_first_screen_share_a_picture():
    model: Any = SimpleNamespace(columns=[f"task{i}/acc" for i in range(6)], full={}, runs=[])
    content = sections.overview(model, {})
    assert [list(picture["views"]) for picture in content["pictures"]] == [
        ["task0/acc"],
        ["task1/acc"],
        ["task2/acc"],
        ["task3/acc", "task4/acc", "task5/acc"],
    ]
