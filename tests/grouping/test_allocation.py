"""Budgets over all layers: against every way to spend them, one by one."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergemoe.errors import UserError
from mergemoe.grouping import allocation


def curve(errors, first=1):
    return [{"experts": m, "width": 4, "error": error} for m, error in enumerate(errors, first)]


layers = st.lists(st.lists(st.integers(0, 60), min_size=4, max_size=4), min_size=1, max_size=3)


@settings(max_examples=60)
@given(drawn=layers, extra=st.integers(0, 9))
def test_no_other_way_to_spend_experts_leaves_less_error(drawn, extra):
    curves = {10 * i: curve([error / 7 for error in errors]) for i, errors in enumerate(drawn)}
    total = min(len(curves) + extra, 4 * len(curves))
    kept = allocation.by_error(curves, total)
    assert list(kept) == list(curves) and sum(kept.values()) == total

    def summed(chosen):
        return sum(curves[layer][m - 1]["error"] for layer, m in zip(curves, chosen, strict=True))

    ways = [way for way in itertools.product(range(1, 5), repeat=len(curves)) if sum(way) == total]
    assert summed(kept.values()) == pytest.approx(min(map(summed, ways)), abs=1e-12)


def test_errors_between_measured_sizes_are_interpolated():
    steep = [{"experts": m, "width": 4, "error": error} for m, error in ((2, 1.0), (6, 0.2), (8, 0.0))]
    flat = [{"experts": m, "width": 4, "error": error} for m, error in ((2, 0.7), (6, 0.1), (8, 0.0))]
    assert allocation.by_error({0: steep, 1: flat}, 9) == {0: 6, 1: 3}


def test_one_threshold_of_usage_is_m_smoes():
    usage = {3: [40, 30, 20, 10], 5: [90, 1, 0, 9], 8: [0, 5, 0, 0]}
    # Relative to the largest of the layer: 1 .75 .5 .25, 1 .01 0 .1 and 0 1 0 0.
    assert allocation.by_usage(usage, 5) == {3: 3, 5: 1, 8: 1}
    assert allocation.by_usage(usage, 7) == {3: 4, 5: 2, 8: 1}


def test_equal_usage_goes_to_the_lower_layer_and_every_layer_keeps_one_expert():
    assert allocation.by_usage({0: [5, 5], 1: [5, 5]}, 3) == {0: 2, 1: 1}
    assert allocation.by_usage({0: [5, 5], 1: [0, 0]}, 2) == {0: 1, 1: 1}


def test_every_layer_keeps_as_many_as_the_size_of_groups_asks_for():
    usage = {0: [9, 1, 1, 1], 1: [9, 8, 7, 6]}
    assert allocation.by_usage(usage, 5) == {0: 1, 1: 4}
    assert allocation.by_usage(usage, 5, max_size=2) == {0: 2, 1: 3}


SIZED = {
    0: [{"experts": 4, "width": 8, "error": 0.5}, {"experts": 8, "width": 4, "error": 0.1}],
    1: [{"experts": 4, "width": 8, "error": 0.2}, {"experts": 8, "width": 4, "error": 0.3}],
}


def test_a_size_is_the_best_of_each_layer_or_of_all_together():
    assert allocation.best_size(SIZED, "layer") == {0: (8, 4), 1: (4, 8)}
    assert allocation.best_size(SIZED, "model") == {0: (8, 4), 1: (8, 4)}


def test_layers_without_a_common_size_are_told_to_choose_their_own():
    with pytest.raises(UserError, match="`per: layer`"):
        allocation.best_size({0: SIZED[0][:1], 1: SIZED[1][1:]}, "model")
