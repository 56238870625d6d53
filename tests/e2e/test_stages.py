"""The stages as programs: what they import, what they track."""

import re
import subprocess
import sys

from tiny_project import ROOT

from stages.support import tracking

HEAVY = {"transformers", "lm_eval", "datasets"}


def loaded_by(module):
    """The top-level packages in sys.modules once a stage module is imported."""
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.split())


def test_a_solve_imports_neither_transformers_nor_lm_eval_nor_datasets():
    loaded = loaded_by("stages.solve, mergemoe.methods.mergemoe, mergemoe.methods.average")
    assert "torch" in loaded
    assert not HEAVY & loaded


def test_what_the_snakefile_imports_brings_no_torch():
    lines = re.findall(r"^from ((?:mergemoe|stages)\S*) import (.*)$", (ROOT / "Snakefile").read_text(), re.MULTILINE)
    named = [(package, f"{package}.{name}") for package, names in lines for name in names.split(", ")]
    modules = {full if (ROOT / f"{full.replace('.', '/')}.py").is_file() else package for package, full in named}
    assert {"mergemoe.artifacts.paths", "stages.support.rules", "stages.support.runs"} <= modules
    loaded = loaded_by(", ".join(modules))
    assert "pydantic" in loaded
    assert not (HEAVY | {"torch"}) & loaded


def test_the_package_itself_brings_neither_torch_nor_transformers():
    assert not (HEAVY | {"torch"}) & loaded_by("mergemoe")


def test_sources_are_the_files_that_a_stage_imports():
    names = {str(path.relative_to(ROOT)) for path in tracking.sources("stages.solve", "mergemoe.methods.mergemoe")}
    assert {
        "stages/solve.py",
        "stages/__init__.py",
        "mergemoe/merging/solve.py",
        "mergemoe/methods/mergemoe.py",
    } <= names
    assert "mergemoe/merging/least_squares.py" in names
    assert (
        not {"mergemoe/workflow/config/params.py", "mergemoe/models/layered_model.py", "mergemoe/methods/average.py"}
        & names
    )


def test_swapped_values_and_key_order_are_told_apart():
    assert (
        tracking.parameter_text({"a": 1, "b": 2})
        == tracking.parameter_text({"b": 2, "a": 1})
        != tracking.parameter_text({"a": 2, "b": 1})
    )
