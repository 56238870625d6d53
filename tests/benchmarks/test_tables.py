"""The benchmarks of speed: the documents show what was measured, and a row measured again replaces the old one."""

import importlib.util
import re

import pytest
from tiny_project import ROOT


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"{name}_bench", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "what"),
    [*((name, "table") for name in ("solve", "layer", "rates", "capture", "inference", "overhead")), ("layer", "line")],
)
def test_the_documents_show_what_was_measured(name, what):
    bench, text = loaded(name), (ROOT / "docs/performance.md").read_text()
    (shown,) = re.findall(f"<!-- table: python benchmarks/{name}.py {what} -->\n(.*?)<!-- end", text, re.DOTALL)
    rows = bench.kept_rows.read(name)
    assert rows and shown.strip() == getattr(bench, what)(rows)


def test_a_row_that_is_measured_again_replaces_the_old_one(tmp_path, monkeypatch):
    kept_rows = loaded("kept_rows")
    monkeypatch.setattr(kept_rows, "FOLDER", tmp_path)
    assert kept_rows.read("some") == []
    kept_rows.keep("some", {"tokens": 1, "machine": "a"}, {"seconds": 5.0})
    kept_rows.keep("some", {"tokens": 1, "machine": "b"}, {"seconds": 6.0})
    kept_rows.keep("some", {"tokens": 1, "machine": "a"}, {"seconds": 7.0})
    assert [(row["machine"], row["seconds"]) for row in kept_rows.read("some")] == [("b", 6.0), ("a", 7.0)]
    assert kept_rows.markdown(["x", "y"], [["1", "2"]]) == "| x | y |\n|---|---|\n| 1 | 2 |"


def test_the_ratio_of_pairs_is_the_median_and_lies_in_its_interval():
    pairs = loaded("pairs")
    assert pairs.shown(pairs.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])) == "2.000 (2.000–2.000)"
    middle, low, high = pairs.ratio([1.0, 2.0, 9.0, 3.0, 4.0], [1.0] * 5)
    assert middle == 3.0 and low < 3.0 < high
