"""The pictures of the report."""

import re

import synthetic

from mergemoe import expertplots, plots, scoreplots


def test_each_method_is_drawn_in_its_own_way():
    drawn = plots.marks(["mergemoe", "average", "mergemoe", "select", "reap", "slim"])
    assert len(drawn) == len(set(drawn.values())) == len({mark.colour for mark in drawn.values()}) == 5


def test_equal_figures_of_one_place_are_there_once():
    layer = synthetic.grouping(0, 4)
    content = plots.switched({"a": expertplots.tokens([layer]), "b": expertplots.tokens([layer, layer | {"layer": 1}])})
    assert content["views"] == {"a": 0, "b": 1}
    same = plots.switched(dict.fromkeys("abc", expertplots.tokens([layer])))
    assert same["views"] == dict.fromkeys("abc", 0) and len(same["figures"]) == 1
    assert "template" not in same["figures"][0]["layout"]


def test_experts_that_became_one_stand_together_the_most_used_first():
    profile = {"usage": [10, 40, 20, 0, 30], "saliency": [1.0, 2.0, 3.0, 4.0, 5.0]}
    groups = [
        {"members": [0, 1], "centre": 1, "size": 2, "share": 0.5},
        {"members": [2], "centre": 2, "size": 1, "share": 0.2},
    ]
    figure = expertplots.experts(profile, {"groups": [groups[1], groups[0]], "pruned": [3, 4]})
    assert list(figure.data[0].x) == [0.4, 0.1, 0.2, 0.0, 0.3]
    assert list(figure.data[1].x) == [2.0, 1.0, 3.0, 4.0, 5.0]
    labels = [re.sub("<span.*", "", label).strip() for label in figure.layout.yaxis.ticktext]
    assert labels == ["<b>1</b>", "0", "2", "<i>3</i>", "<i>4</i>"]
    colours = figure.data[0].marker.color
    assert colours[0] == colours[1] != colours[2] and colours[3] == colours[4] == "rgba(0,0,0,0)"
    assert [(band.y0, band.y1) for band in figure.layout.shapes if band.xref == "x domain"] == [(-0.5, 1.5)]


def test_tokens_of_a_group_are_told_from_those_that_do_not_suffice():
    enough, few, *lines = expertplots.tokens([synthetic.grouping(0, 2)]).data  # of 6 that a group needs
    assert (list(enough.y), list(few.y)) == ([103], [3])
    assert {line.name: set(line.y) for line in lines} == {
        "all fitted tokens": {1568},
        "needed for all groups at once": {12},
        "needed for one group": {6},
    }


def test_errors_of_one_method_alone_have_a_colour_per_run():
    lines = [
        scoreplots.Line(f"mixed/{name}/{method}", f"mixed/{name}", method, [0, 1], [0.1, 0.2], [0.2, None])
        for name, method in (("half", "average"), ("half", "reap"), ("quarter", "average"))
    ]
    drawn = plots.marks(["average", "reap"])
    whole = scoreplots.errors(lines, drawn, {}, fit=False)
    assert [trace.line.color for trace in whole.data] == [drawn[line.method].colour for line in lines]
    alone = scoreplots.errors([lines[0], lines[2]], drawn, {}, fit=True)
    assert alone.layout.showlegend and not whole.layout.showlegend
    assert len({trace.line.color for trace in alone.data}) == 2
    assert [list(trace.y) for trace in alone.data] == [[0.2, None], [0.1, 0.2]] * 2


def test_a_layer_shows_the_errors_of_every_run():
    lines = [scoreplots.Line(f"mixed/half/{m}", "mixed/half", m, [4, 7], [0.1, 0.2], [0.3, 0.4]) for m in ("a", "b")]
    figure = scoreplots.layer(1, lines, plots.marks("ab"), {})
    assert [(trace.name, *trace.x) for trace in figure.data] == [("mixed/half/a", 0.2, 0.4), ("mixed/half/b", 0.2, 0.4)]


def test_the_ticks_of_a_logarithmic_axis_are_plain_numbers():
    axis = plots.logarithmic([0.02, 0.5, None, 0.0])
    assert dict(zip(axis["tickvals"], axis["ticktext"], strict=True))[0.05] == "0.05"
    assert "20,000" in plots.logarithmic([100, 15_000])["ticktext"]
