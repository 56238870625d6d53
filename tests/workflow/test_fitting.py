"""The combinations that fit a number of bytes: which, in which order, and what is said of none."""

import pytest
import yaml
from project import ROOT

from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import fitting, plan

SIZES = {
    "16GB": 16 * 10**9,
    "14.5 GiB": int(14.5 * 2**30),
    "300": 300,
    "0.5kB": 500,
    " 2MB ": 2_000_000,
    "9007199254740993": 9007199254740993,
}


@pytest.fixture(scope="module")
def params():
    """The demo's parameters with two quantizations; one of them divides no row of its experts."""
    config = yaml.safe_load((ROOT / "params.yaml").read_text())
    config["model"]["demo"]["path"] = str(ROOT / config["model"]["demo"]["path"])
    config["quantize"] = {"q4": {"by": "round", "format": "Q4_0"}, "odd": {"by": "gptq", "bits": 4, "group": 80}}
    return read_params(config)


def lines_of(text):
    return [line.split() for line in text.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_is_read_with_its_unit(text, size):
    assert fitting.parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "16Gb", "1e9", "0", "0.0001kB", "16 G B", "nan", "9" * 5000 + "Z", "9" * 400 + "GB", "9" * 5000],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="--bytes: got .*; write a size as 16GB") as error:
        fitting.parse_bytes(text)
    assert len(str(error.value)) < 300


def test_every_combination_that_fits_is_there_the_largest_first(params):
    limit = 5_000_000
    found = lines_of(fitting.fitting_text(params, {}, limit))
    runs = params.model_copy(update={"runs": "all"}).all_runs()
    sizes = {run.subject: plan.run_size(params, run)["bytes"] for run in runs if run.quantize != "odd"}
    expected = {name: size for name, size in sizes.items() if size <= limit}
    assert 0 < len(expected) < len(sizes)
    told = {line[0]: int(line[1].replace(",", "")) for line in found}
    assert told == expected and list(told.values()) == sorted(told.values(), reverse=True)
    assert all(line[3:] == ["–", "not", "in", "`runs`"] for line in found)


def test_measured_ones_come_first_by_their_kl(params):
    names = [run.subject for run in params.all_runs()]
    kl = {name: 0.5 - 0.1 * place for place, name in enumerate(names)}
    metrics = {"demo": {"runs": {name: {fitting.KL: value} for name, value in kl.items()}}}
    text = fitting.fitting_text(params, metrics, 10**9)
    found = [line[0] for line in lines_of(text)]
    assert found[: len(names)] == names[::-1] and "the lowest KL first" in text
    assert [line[3:] for line in lines_of(text)[: len(names)]] == [[f"{kl[name]:.3g}"] for name in names[::-1]]


def test_the_smallest_is_named_if_none_fits(params):
    runs = params.model_copy(update={"runs": "all"}).all_runs()
    least = min(plan.run_size(params, run)["bytes"] for run in runs if run.quantize != "odd")
    assert f"the smallest has {least:,}" in fitting.fitting_text(params, {}, 1000)
