"""Section refine takes what the table of its options allows, as `mergemoe.compress` does."""

import pytest
from refusals import accepts

from mergemoe.compressed.request import addition_arguments
from mergemoe.reconstruction.options import KINDS, LAYER
from mergemoe.workflow.config.refine import LAYER as SECTION

VALUES = ["auto", "up", "float32", "kept", -1, 0, 1, 400, 0.5, 2.0, float("nan"), True, None]
LISTS = [[], ["up"], ["gate", "up", "down", "router"], ["up", "up"], ["left"]]


@pytest.mark.parametrize("name", LAYER)
def test_params_yaml_and_compress_allow_the_same_values(name):
    for value in VALUES + LISTS:
        allowed = LAYER[name].allows(value)
        assert accepts(SECTION.model_validate, {"by": "layer", name: value}) == allowed, value
        assert accepts(addition_arguments.refine_options, {name: value}, "pruned") == allowed, value


def test_a_choice_without_options_has_the_defaults_of_the_table():
    chosen = SECTION.model_validate({"by": "layer"}).model_dump()
    assert chosen.keys() == {"by", "threads", *LAYER}
    assert {name: tuple(v) if isinstance(v := chosen[name], list) else v for name in LAYER} == {
        name: option.default for name, option in LAYER.items()
    }


def test_every_kind_of_the_table_has_a_class():
    assert list(KINDS) == [SECTION.__name__] == ["layer"]
