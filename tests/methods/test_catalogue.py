"""The table of methods: it agrees with the methods' files, with params.yaml's classes and with the documentation."""

import importlib
import inspect
import itertools
from typing import get_args

import pytest
from refusals import accepts
from tiny_project import ROOT

from mergemoe.compressed.request import arguments
from mergemoe.merging.feature_rules import Features
from mergemoe.methods import catalogue, options
from mergemoe.methods.catalogue import METHODS
from mergemoe.quantization.options import KINDS
from mergemoe.reconstruction.options import LAYER
from mergemoe.workflow.config.solve import SECTIONS

VALUES = ["auto", "usage", "selected", "pruned", "preserved", "best", -1.0, 0.0, 0.5, 1.0, 1, 8.0, float("nan"), True]
OPTIONS = [(method, name) for method, row in METHODS.items() for name in row.options]


def test_every_method_has_groupings_and_every_grouping_a_method():
    known = "average msmoe zipit hcsmoe mergemoe oracle reap unsolved routed joint select slim"
    assert " ".join(METHODS) == known
    assert {by for row in METHODS.values() for by in row.groupings} == {
        "weights", "router", "outputs", "selection", "saliency", "none",
    }  # fmt: skip


def test_every_method_is_a_file_and_every_file_a_method():
    files = {path.stem for path in (ROOT / "mergemoe" / "methods").glob("*.py")}
    assert files - {"__init__", "catalogue", "options"} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_options_of_its_row_and_has_no_defaults_of_its_own(method):
    problem, *takes = inspect.signature(importlib.import_module(f"mergemoe.methods.{method}").merge).parameters.values()
    assert problem.name == "problem"
    own = METHODS[method].options.keys() - {"routing", "width", "width_multiple"}  # the solve makes `kept` of these two
    assert {parameter.name for parameter in takes} == own | ({"kept"} if "width" in METHODS[method].options else set())
    assert all(parameter.default is inspect.Parameter.empty for parameter in takes)


def test_the_names_of_features_and_routings_are_those_that_the_code_has():
    assert catalogue.FEATURES.words == get_args(Features)
    assert {catalogue.routing(method, {}) for method in METHODS} == {"preserved", "pruned"}


@pytest.mark.parametrize(("method", "name"), OPTIONS)
def test_a_default_is_allowed_and_described(method, name):
    option = METHODS[method].options[name]
    assert option.text and option.allowed
    assert option.default is None or option.allows(option.default)


@pytest.mark.parametrize(("method", "name"), OPTIONS)
def test_params_yaml_and_compress_allow_the_same_values(method, name):
    needed = {"width": 0.5} if method == "slim" else {}
    needed |= {"features": "selected"} if "features" in METHODS[method].options else {}
    for value in VALUES:
        given = needed | {name: value}
        if "features" in given and given["features"] != "selected" and given.get("width", 1.0) != 1:
            continue
        file = accepts(SECTIONS[method].model_validate, {"method": method} | given)
        memory = accepts(arguments.method_options, method, given)
        only_in_file = method == "select" and name == "width" and value == "auto"
        assert file == METHODS[method].options[name].allows(value) == (memory or only_in_file), value


@pytest.mark.parametrize("method", METHODS)
def test_params_yaml_and_compress_complete_a_choice_alike(method):
    given = {"width": 0.5} if method == "slim" else {}
    choice = SECTIONS[method].model_validate({"method": method} | given).model_dump()
    assert choice == {"method": method, "threads": 1} | arguments.method_options(method, given)


def test_averages_cannot_be_narrower():
    for method, features in itertools.product(("routed", "joint", "unsolved"), get_args(Features)):
        given = {"features": features, "width": 0.5}
        assert (catalogue.conflict(given) is None) == (features == "selected")
        assert accepts(arguments.method_options, method, given) == (features == "selected")
        assert accepts(SECTIONS[method].model_validate, {"method": method} | given) == (features == "selected")


def test_the_documentation_has_the_table():
    text = (ROOT / "docs" / "method.md").read_text()
    for table in (LAYER, *KINDS.values()):
        assert options.options_markdown(table) in text
    assert options.markdown(METHODS) in text
