"""Exactly which jobs a change reruns: one dry run of the real Snakefile per row (test_reruns_of_keys.py: each key)."""

import shutil

import pytest
import yaml
from tiny_project import make_tiny, planned

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

# All three runs anew, the full model's scores stay; two choices of solve and one of refine, two layers.
RUNS = {"assemble": 3, "fidelity": 3, "generate": 3, "evaluate": 3, "report": 1}
TWO = {"assemble": 2, "fidelity": 2, "generate": 2, "evaluate": 2, "report": 1}
ONE = {"assemble": 1, "fidelity": 1, "generate": 1, "evaluate": 1, "report": 1}
SOLVED = {"solve": 2, "refine": 2, **TWO}  # of the solve that one run refines
GROUPED = {"cluster": 2, "solve": 4, "refine": 2, **RUNS}
CALIBRATED = {"calibrate": 1, "capture": 1, "profile": 2, **GROUPED}
REFERENCED = {"reference": 1, "fidelity": 4, "generate": 4, "report": 1}
TASK = {"evaluate": 4, "report": 1}
SCORED = {**REFERENCED, "evaluate": 4}
EVERYTHING = {"layout": 1, **CALIBRATED, **SCORED}
PARAMS = "params.yaml"

# what changes: (file, what is there, what stands there then) -> jobs per rule
TABLE = {
    "nothing": (PARAMS, "runs:", "runs:", {}),
    "a comment": (PARAMS, "runs:", "# a remark\nruns:", {}),
    "the order of keys": (PARAMS, "{method: mergemoe, ridge: 0.0}", "{ridge: 0.0, method: mergemoe}", {}),
    "model.path": (PARAMS, "path: tiny-moe", "path: other-moe", EVERYTHING),
    "two values of calibrate swapped": (PARAMS, "samples: 8, length: 32", "samples: 32, length: 8", CALIBRATED),
    "solve.ridge": (PARAMS, "ridge: 0.0", "ridge: 0.1", SOLVED),
    "refine.steps": (PARAMS, "steps: 8", "steps: 9", {"refine": 2, **ONE}),
    "no refine": (PARAMS, "  - [tiny, mixed, half, mergemoe, tuned]\n", "", {"report": 1}),
    "a run as a mapping": (
        PARAMS,
        "[tiny, mixed, half, mergemoe, tuned]",
        "{model: tiny, calibrate: mixed, cluster: half, solve: mergemoe, refine: tuned}",
        {},
    ),
    "code of a refine": (
        "mergemoe/reconstruction/step_size.py",
        "WARM_UP = 20",
        "WARM_UP = 21",
        {"refine": 2, **ONE},
    ),
    "a new task": (
        PARAMS,
        "  heldout:",
        "    blimp_causative: {include: data/blimp, limit: 2}\n  heldout:",
        TASK,
    ),
    "no generation": (PARAMS, "  generation:", "  # generation:", {"report": 1}),
    "code of generation": ("mergemoe/evaluation/generation.py", "SPAN = 24", "SPAN = 25", {"generate": 4, "report": 1}),
    "fewer runs": (PARAMS, "  - [tiny, mixed, half, average]\n", "", {"report": 1}),
    "a comment in a method": (
        "mergemoe/methods/mergemoe.py",
        "    averaged = ",
        "    # a remark\n    averaged = ",
        {},
    ),
    "a docstring in the library": (
        "mergemoe/moe/expert_forward.py",
        '"""Return the features',
        '"""Return, in other words, the features',
        {},
    ),
    "a progress line": ("mergemoe/progress.py", "s left", "seconds to go", {}),
    "the words of an error": ("mergemoe/artifacts/verify.py", "was made by other code of", "has other code of", {}),
    "a method's code": ("mergemoe/methods/mergemoe.py", "    averaged = ", "    averaged: list = ", SOLVED),
    "code of features": (
        "mergemoe/moe/expert_forward.py",
        "    return act(*projections(x, experts, expert))",
        "    return 1 * act(*projections(x, experts, expert))",
        EVERYTHING,  # layout holds the rules of features against the model's own class
    ),
    "code of the report": ("mergemoe/report/metrics.py", "SAME_SIZE = 0.01", "SAME_SIZE = 0.02", {"report": 1}),
    "the checkpoint's own code": (
        "mergemoe/compressed/modeling.py",
        "    class Merged(stock):",
        "    # a remark\n    class Merged(stock):",
        RUNS,
    ),
    "a file of the model": ("tiny-moe/config.json", "{", "{ ", EVERYTHING),
    "a page's template": ("mergemoe/report/templates/page.html", "</html>", "<!-- a remark --></html>", {"report": 1}),
    "a task's file": ("data/blimp/causative.yaml", "task:", "# a remark\ntask:", TASK),
}


# what is added: (section, choice, run) -> jobs per rule; nothing that exists runs again
ADDED = {
    "a calibration": (
        "calibrate",
        {"more": {"source": "data/calibration/wiki.jsonl.gz", "samples": 8, "length": 32}},
        ["tiny", "more", "half", "average"],
        {"calibrate": 1, "capture": 1, "profile": 2, "cluster": 2, "solve": 2, **ONE},
    ),
    "a grouping": (
        "cluster",
        {"few": {"by": "weights", "experts": 2}},
        ["tiny", "mixed", "few", "average"],
        {"cluster": 2, "solve": 2, **ONE},
    ),
    "a solve": (
        "solve",
        {"damped": {"method": "mergemoe", "ridge": 0.1}},
        ["tiny", "mixed", "half", "damped"],
        {"solve": 2, **ONE},
    ),
    "a refine": (
        "refine",
        {"longer": {"by": "layer", "steps": 9}},
        ["tiny", "mixed", "half", "mergemoe", "longer"],
        {"refine": 2, **ONE},
    ),
    "a quantization": (
        "quantize",
        {"g3": {"by": "gptq", "bits": 3, "group": 8}},
        ["tiny", "mixed", "half", "mergemoe", "tuned", "g3"],
        {"quantize": 2, **ONE},
    ),
    "a refined run": ("refine", {}, ["tiny", "mixed", "half", "average", "tuned"], {"refine": 2, **ONE}),
}

QUICK = {
    "nothing",
    "solve.ridge",
    "refine.steps",
    "a method's code",
    "a docstring in the library",
    "a file of the model",
}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    copied = shutil.copytree(finished, tmp_path_factory.mktemp("reruns") / "project")
    make_tiny(copied / "other-moe", initializer_range=0.3)
    return copied


@pytest.mark.parametrize(
    "change", [pytest.param(change, marks=() if change in QUICK else pytest.mark.full) for change in TABLE]
)
def test_a_change_reruns_exactly(project, change):
    name, old, new, expected = TABLE[change]
    path = project / name
    before = path.read_text()
    assert old in before
    try:
        path.write_text(before.replace(old, new, 1))
        assert planned(project) == expected
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what == "a refined run" else pytest.mark.full) for what in ADDED]
)
def test_what_is_added_reruns_nothing_that_exists(project, what):
    section, choice, run, expected = ADDED[what]
    path = project / PARAMS
    before = path.read_text()
    params = yaml.safe_load(before)
    params[section] = params.get(section, {}) | choice
    params["runs"].append(run)
    try:
        path.write_text(yaml.safe_dump(params))
        assert planned(project) == expected
    finally:
        path.write_text(before)


def test_a_new_method_reruns_nothing(project):
    package = project / "mergemoe"
    table, line = project / "mergemoe/methods/catalogue.py", "METHODS = {\n"
    before, params = table.read_text(), (project / "params.yaml").read_text()
    assert line in before
    try:
        (package / "methods" / "new.py").write_text('"""New."""\n\n\ndef merge(problem):\n    return []\n')
        table.write_text(before.replace(line, line + '    "new": Method("new", ANY),\n'))
        assert planned(project) == {}
        (project / "params.yaml").write_text(params.replace("{method: average}", "{method: new}"))
        assert planned(project)["solve"] == 2  # it can be asked for
    finally:
        table.write_text(before)
        (project / "params.yaml").write_text(params)
        (package / "methods" / "new.py").unlink()
