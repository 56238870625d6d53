"""Options that are whole numbers, and lists of words."""

import pytest

from mergemoe.methods.options import Option

WHOLE = Option("steps", default=400, words=("auto",), at_least=0, whole=True)
SEVERAL = Option("parts", default=("gate", "up"), words=("gate", "up", "down"), several=True)


@pytest.mark.parametrize(
    ("value", "allowed"), [(0, True), (400, True), ("auto", True), (1.0, False), (-1, False), (True, False)]
)
def test_a_whole_number_is_an_integer_within_its_bounds(value, allowed):
    assert WHOLE.allows(value) is allowed


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (["gate"], True),
        (("gate", "up"), True),
        ([], False),
        (["up", "up"], False),
        (["up", "left"], False),
        ([["up"]], False),
        ("up", False),
        (1, False),
    ],
)
def test_several_words_are_a_list_without_repeats(value, allowed):
    assert SEVERAL.allows(value) is allowed


def test_what_is_allowed_is_told_in_words():
    assert WHOLE.allowed == "auto, or a whole number at least 0"
    assert SEVERAL.allowed == "a list of one or more of gate, up, down"
    assert SEVERAL.allows(SEVERAL.default)
