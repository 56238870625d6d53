"""The pictures of the report."""

import random

import pytest
import synthetic

from mergemoe.report import expert_chart, plot_style, refine_plots, score_plots, token_plots

LINE = score_plots.Line("mixed/half/a", "mixed/half", "a", [0], [0.1], [0.2])


def test_each_method_is_drawn_in_its_own_way():
    drawn = plot_style.marks(["mergemoe", "average", "mergemoe", "select", "reap", "slim"])
    assert len(drawn) == len(set(drawn.values())) == len({mark.colour for mark in drawn.values()}) == 5


def test_equal_figures_of_one_place_are_there_once():
    layer = synthetic.grouping(0, 4)
    content = plot_style.switched(
        {"a": token_plots.tokens([layer]), "b": token_plots.tokens([layer, layer | {"layer": 1}])}
    )
    assert content["views"] == {"a": 0, "b": 1}
    same = plot_style.switched(dict.fromkeys("abc", token_plots.tokens([layer])))
    assert same["views"] == dict.fromkeys("abc", 0) and len(same["figures"]) == 1
    assert same["figures"][0]["layout"] == {} and "template" not in same["layout"]
    high = score_plots.layer(0, [LINE] * 9, plot_style.marks("a"), {})
    both = plot_style.switched({"low": score_plots.layer(0, [LINE], plot_style.marks("a"), {}), "high": high})
    assert both["layout"]["margin"] == {"l": 8, "t": 12}
    assert both["figures"][1]["layout"]["height"] == high.layout.height


def test_experts_that_became_one_stand_together_the_most_used_first():
    profile = expert_chart.profiled({"usage": [10, 40, 20, 0, 30], "saliency": [1.0, 2.0, 3.0, 4.0, 1 / 3]})
    assert profile == {"usage": [0.1, 0.4, 0.2, 0.0, 0.3], "saliency": [1.0, 2.0, 3.0, 4.0, 0.3333]}
    groups = [{"members": [2], "centre": 2, "share": 0.2}, {"members": [0, 1], "centre": 1, "share": 0.5}]
    told = expert_chart.grouped({"groups": groups, "pruned": [3, 4]}, profile["usage"])
    assert told == {"groups": [[1, 0], [2]], "shares": [0.5, 0.2], "pruned": [3, 4]}


def test_tokens_of_a_group_are_told_from_those_that_do_not_suffice():
    enough, few, *lines = token_plots.tokens([synthetic.grouping(0, 2)]).data  # of 6 that a group needs
    assert (list(enough.y), list(few.y)) == ([103], [3])
    assert {line.name: set(line.y) for line in lines} == {
        "all fitted tokens": {1568},
        "needed for all groups at once": {12},
        "needed for one group": {6},
    }


def test_errors_of_one_method_alone_have_a_colour_per_run():
    lines = [
        score_plots.Line(f"mixed/{name}/{method}", f"mixed/{name}", method, [0, 1], [0.1, 0.2], [0.2, None])
        for name, method in (("half", "average"), ("half", "reap"), ("quarter", "average"))
    ]
    drawn = plot_style.marks(["average", "reap"])
    whole = score_plots.errors(lines, drawn, {}, fit=False)
    assert [trace.line.color for trace in whole.data] == [drawn[line.method].colour for line in lines]
    alone = score_plots.errors([lines[0], lines[2]], drawn, {}, fit=True)
    assert alone.layout.showlegend and not whole.layout.showlegend
    assert len({trace.line.color for trace in alone.data}) == 2
    assert [list(trace.y) for trace in alone.data] == [[0.2, None], [0.1, 0.2]] * 2


def test_a_layer_shows_the_errors_of_every_run():
    lines = [score_plots.Line(f"mixed/half/{m}", "mixed/half", m, [4, 7], [0.1, 0.2], [0.3, None]) for m in ("a", "b")]
    spans, fit, heldout = score_plots.layer(1, lines, plot_style.marks("ab"), {}).data
    assert (list(fit.x), list(heldout.x)) == ([0.2, 0.2], [None, None])
    assert list(spans.x) == [0.2, None, None] * 2
    assert list(fit.text) == ["mixed/half/a", "mixed/half/b"]
    assert list(fit.marker.symbol) == [f"{symbol}-open" for symbol in heldout.marker.symbol]


def test_a_refine_is_drawn_from_its_start_to_the_state_that_was_kept():
    whole = refine_plots.descent([synthetic.refinement(layer, 4, 0.1) for layer in (0, 2)])
    assert [trace.name for trace in whole.data] == ["layer 0", "layer 2"] and whole.layout.showlegend
    line = whole.data[0]
    assert list(line.x) == [0, 10, 20, 30, 40, 50] and list(line.y) == [4.1, 3.1, 2.1, 1.1, 0.1, 0.2]
    assert [bool(size) for size in line.marker.size] == [True, False, False, False, True, False]
    assert (line.marker.symbol[0], line.marker.symbol[4]) == ("circle-open", "circle")
    stayed = refine_plots.descent([{**synthetic.refinement(0, 4, 0.1), "best_step": 0}]).data[0]
    assert stayed.marker.symbol[0] == "circle" and sum(map(bool, stayed.marker.size)) == 1


def test_the_ticks_of_a_logarithmic_axis_are_plain_numbers():
    axis = plot_style.logarithmic([0.02, 0.5, None, 0.0])
    assert dict(zip(axis["tickvals"], axis["ticktext"], strict=True))[0.05] == "0.05"
    assert "20,000" in plot_style.logarithmic([100, 15_000])["ticktext"]


@pytest.mark.parametrize("seed", range(20))
def test_the_envelope_joins_the_runs_that_no_smaller_one_beats(seed):
    draw = random.Random(seed)
    placed = [(float(draw.randint(1, 20)), float(draw.randint(1, 20))) for _ in range(60)]
    found = [placed[place] for place in score_plots.lower_envelope(placed)]
    assert found == sorted(found) and len(set(found)) == len(found)
    for size, error in placed:
        others = [one for one in placed if one != (size, error)]
        beaten = any(other <= size and value <= error for other, value in others)
        assert ((size, error) in found) != beaten


def test_a_score_of_which_less_is_better_is_drawn_with_its_envelope():
    points = [
        score_plots.Point(f"r{i}", "average", share, kl, None)
        for i, (share, kl) in enumerate([(0.5, 0.1), (0.7, 0.2), (0.3, 0.4)])
    ]
    drawn = plot_style.marks(["average"])
    kl, accuracy = (score_plots.quality("a score", key, None, points, drawn) for key in ("fidelity/kl", "task/acc"))
    (line,) = [trace for trace in kl.data if trace.mode == "lines"]
    assert (list(line.x), list(line.y)) == ([0.3, 0.5], [0.4, 0.1])
    assert not [trace for trace in accuracy.data if trace.mode == "lines"]
