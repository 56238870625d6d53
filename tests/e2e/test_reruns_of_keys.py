"""A row for every key of params.yaml: exactly which jobs a new value reruns, by a dry run of the real Snakefile.

The project is that of test_reruns.py with a run for each of the kinds of choices that have keys of their own.
"""

import shutil
import typing

import pytest
import yaml
from pydantic import BaseModel
from tiny_project import make_tiny, planned, snakemake

from mergemoe.workflow.config.params import Params

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

MORE = {
    "cluster": {"pairs": {"by": "selection", "experts": 0.5}},
    "solve": {"joint": {"method": "joint"}, "select": {"method": "select"}},
    "quantize": {
        "rounded": {"by": "round", "format": "Q4_0", "rest": "none"},
        "fitted": {"by": "descent", "bits": 3, "group": 8, "steps": 4, "batch": 64, "rate": 0.1, "rest": "none"},
    },
}
RUNS = [
    ["tiny", "mixed", "half", "joint"],
    ["tiny", "mixed", "pairs", "select"],
    ["tiny", "mixed", "half", "average", None, "fitted"],
]
SCORES = ("fidelity", "generate", "evaluate")


def of_runs(number, **jobs):
    """Jobs per rule of so many runs, from assemble on."""
    return {**jobs, "assemble": number, **dict.fromkeys(SCORES, number), "report": 1}


LAYERS = 2
RUN = of_runs(1)
QUANTIZED = of_runs(1, quantize=LAYERS)
REFINED = of_runs(1, refine=LAYERS)
JOINT = of_runs(1, solve=LAYERS)
PAIRED = of_runs(1, cluster=LAYERS, solve=LAYERS)
MERGED = of_runs(2, solve=LAYERS, refine=LAYERS)
BUDGETED = {**PAIRED, "curve": LAYERS, "budget": 1}
ONE_LAYER = of_runs(5, cluster=1, solve=3, refine=1, quantize=1)
HALVED = of_runs(5, cluster=LAYERS, solve=3 * LAYERS, refine=LAYERS, quantize=LAYERS)
GROUPED = of_runs(6, cluster=2 * LAYERS, solve=4 * LAYERS, refine=LAYERS, quantize=LAYERS)
PROFILED = {**GROUPED, "profile": LAYERS}
CAPTURED = {**PROFILED, "capture": 1}
CALIBRATED = {**CAPTURED, "calibrate": 1}
HELD_OUT = {"reference": 1, "fidelity": 7, "generate": 7, "report": 1}
TASK = {"evaluate": 7, "report": 1}
SCORED = {**HELD_OUT, "evaluate": 7}
GENERATED = {"generate": 7, "report": 1}
EVERYTHING = {**CALIBRATED, **SCORED, "layout": 1}

# key of params.yaml: ({place: new value, None to take it away}, jobs per rule)
ROWS = {
    "model.path": ({"model.tiny.path": "other-moe"}, EVERYTHING),
    "calibrate.source": ({"calibrate.mixed.source": "data/calibration/wiki.jsonl.gz"}, CALIBRATED),
    "calibrate.dataset": (
        {
            "calibrate.mixed.source": None,
            "calibrate.mixed.dataset": "some/set",
            "calibrate.mixed.revision": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        },
        CALIBRATED,
    ),
    "calibrate.revision": ({"calibrate.mixed.revision": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}, CALIBRATED),
    "calibrate.subset": ({"calibrate.mixed.subset": "en"}, CALIBRATED),
    "calibrate.split": ({"calibrate.mixed.split": "test"}, CALIBRATED),
    "calibrate.field": ({"calibrate.mixed.field": ["text", "domain"]}, CALIBRATED),
    "calibrate.skip_invalid": ({"calibrate.mixed.skip_invalid": True}, CALIBRATED),
    "calibrate.samples": ({"calibrate.mixed.samples": 9}, CALIBRATED),
    "calibrate.length": ({"calibrate.mixed.length": 33}, CALIBRATED),
    "calibrate.seed": ({"calibrate.mixed.seed": 1}, CALIBRATED),
    "calibrate.pack": ({"calibrate.mixed.pack": False}, CALIBRATED),
    "calibrate.holdout": ({"calibrate.mixed.holdout": 0.5}, CALIBRATED),
    "capture.dtype": ({"capture.dtype": "bfloat16"}, CAPTURED),
    "capture.batch_tokens": ({"capture.batch_tokens": 32}, CAPTURED),
    "capture.threads": ({"capture.threads": 2}, CAPTURED),
    "profile.threads": ({"profile.threads": 2}, PROFILED),
    "cluster.by": ({"cluster.pairs.by": "weights", "solve.select": {"method": "average"}}, PAIRED),
    "cluster.experts": ({"cluster.half.experts": 0.75}, HALVED),
    "cluster.layers": ({"cluster.half.layers": "1-1"}, ONE_LAYER),
    "cluster.threads": ({"cluster.half.threads": 2}, HALVED),
    "cluster.share": ({"cluster.pairs": {"by": "selection", "share": 0.5}, "solve.select.width": "auto"}, BUDGETED),
    "cluster.per": (
        {"cluster.pairs": {"by": "selection", "share": 0.5, "per": "layer"}, "solve.select.width": "auto"},
        BUDGETED,
    ),
    "cluster.budget": ({"cluster.pairs.budget": "error"}, BUDGETED),
    "cluster.width": ({"cluster.pairs.width": 0.5, "solve.select.width": 0.5}, PAIRED),
    "cluster.width_multiple": ({"cluster.pairs.width_multiple": 8}, PAIRED),
    "cluster.max_size": ({"cluster.pairs.max_size": 2}, PAIRED),
    "cluster.search": ({"cluster.pairs.search": "quick"}, PAIRED),
    "solve.method": ({"solve.mergemoe": {"method": "average"}}, MERGED),
    "solve.threads": ({"solve.joint.threads": 2}, JOINT),
    "solve.ridge": ({"solve.joint.ridge": 0.1}, JOINT),
    "solve.routing": ({"solve.joint.routing": "folded"}, JOINT),
    "solve.features": ({"solve.joint.features": "selected"}, JOINT),
    "solve.width": ({"solve.joint.width": 0.5, "solve.joint.features": "selected"}, JOINT),
    "solve.width_multiple": ({"solve.select.width_multiple": 8}, JOINT),
    "solve.memory": ({"solve.joint.memory": 2}, JOINT),
    "refine.threads": ({"refine.tuned.threads": 2}, REFINED),
    "refine.steps": ({"refine.tuned.steps": 9}, REFINED),
    "refine.batch": ({"refine.tuned.batch": 32}, REFINED),
    "refine.rate": ({"refine.tuned.rate": 0.2}, REFINED),
    "refine.parts": ({"refine.tuned.parts": ["down"]}, REFINED),
    "refine.seed": ({"refine.tuned.seed": 1}, REFINED),
    "refine.dtype": ({"refine.tuned.dtype": "bfloat16"}, REFINED),
    "refine.targets": ({"refine.tuned.targets": "recomputed"}, REFINED),
    "quantize.by": (
        {
            "quantize.fitted.by": "gptq",
            "quantize.fitted.steps": None,
            "quantize.fitted.batch": None,
            "quantize.fitted.rate": None,
        },
        QUANTIZED,
    ),
    "quantize.threads": ({"quantize.fitted.threads": 2}, QUANTIZED),
    "quantize.bits": ({"quantize.fitted.bits": 2}, QUANTIZED),
    "quantize.damping": ({"quantize.fitted.damping": 0.1}, QUANTIZED),
    "quantize.steps": ({"quantize.fitted.steps": 5}, QUANTIZED),
    "quantize.batch": ({"quantize.fitted.batch": 32}, QUANTIZED),
    "quantize.rate": ({"quantize.fitted.rate": 0.2}, QUANTIZED),
    "quantize.seed": ({"quantize.fitted.seed": 1}, QUANTIZED),
    "quantize.dtype": ({"quantize.fitted.dtype": "bfloat16"}, QUANTIZED),
    "quantize.targets": ({"quantize.fitted.targets": "recomputed"}, QUANTIZED),
    "quantize.rest": ({"quantize.fitted.rest": "Q8_0"}, RUN),
    "evaluate.tasks.include": ({"evaluate.tasks.blimp.include": "more-blimp"}, TASK),
    "evaluate.tasks.trust_code": ({"evaluate.tasks.blimp.trust_code": True}, {}),
    "evaluate.tasks.data_files": (
        {"evaluate.tasks.piqa": {"data_files": {"validation": "data/calibration/wiki.jsonl.gz"}}},
        TASK,
    ),
    "evaluate.tasks.fewshot": ({"evaluate.tasks.blimp.fewshot": 1}, TASK),
    "evaluate.tasks.limit": ({"evaluate.tasks.blimp.limit": 3}, TASK),
    "evaluate.tasks.batch_size": ({"evaluate.tasks.blimp.batch_size": 4}, TASK),
    "evaluate.heldout.source": ({"evaluate.heldout.source": "data/calibration/wiki.jsonl.gz"}, HELD_OUT),
    "evaluate.heldout.dataset": (
        {
            "evaluate.heldout.source": None,
            "evaluate.heldout.dataset": "some/set",
            "evaluate.heldout.revision": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        },
        HELD_OUT,
    ),
    "evaluate.heldout.revision": ({"evaluate.heldout.revision": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}, HELD_OUT),
    "evaluate.heldout.subset": ({"evaluate.heldout.subset": "en"}, HELD_OUT),
    "evaluate.heldout.split": ({"evaluate.heldout.split": "test"}, HELD_OUT),
    "evaluate.heldout.field": ({"evaluate.heldout.field": ["text", "domain"]}, HELD_OUT),
    "evaluate.heldout.skip_invalid": ({"evaluate.heldout.skip_invalid": True}, HELD_OUT),
    "evaluate.heldout.samples": ({"evaluate.heldout.samples": 5}, HELD_OUT),
    "evaluate.heldout.length": ({"evaluate.heldout.length": 31}, HELD_OUT),
    "evaluate.heldout.seed": ({"evaluate.heldout.seed": 1}, HELD_OUT),
    "evaluate.heldout.pack": ({"evaluate.heldout.pack": False}, HELD_OUT),
    "evaluate.generation.prompts": ({"evaluate.generation.prompts": 3}, GENERATED),
    "evaluate.generation.prompt_tokens": ({"evaluate.generation.prompt_tokens": 9}, GENERATED),
    "evaluate.generation.new_tokens": ({"evaluate.generation.new_tokens": 25}, GENERATED),
    "evaluate.dtype": ({"evaluate.dtype": "bfloat16"}, SCORED),
    "evaluate.batch_tokens": ({"evaluate.batch_tokens": 32}, HELD_OUT),
    "evaluate.threads": ({"evaluate.threads": 2}, SCORED),
    "runs": ({"runs": [["tiny", "mixed", "half", "joint"]]}, {"report": 1}),
}
ELSEWHERE = {  # the test that stands for a key whose new value needs another project
    "model.revision": "tests/checkpoints/test_hub.py::test_every_stage_that_reads_the_model_finds_one_of_the_hub",
    "model.dequantize": "tests/models/test_dequantize.py",
    **dict.fromkeys(("model.average.paths", "model.average.by", "model.average.alpha"), "tests/models/test_average.py"),
    "refine.by": "one value",
    "quantize.format": "tests/e2e/test_quantize.py",
    "quantize.group": "tests/e2e/test_quantize.py",
}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    made = shutil.copytree(finished, tmp_path_factory.mktemp("keys") / "project")
    make_tiny(made / "other-moe", initializer_range=0.3)
    shutil.copytree(made / "data/blimp", made / "more-blimp")
    for path in (made / "more-blimp").glob("*.yaml"):
        path.write_text(path.read_text().replace("data/blimp", "more-blimp"))
    params = yaml.safe_load((made / "params.yaml").read_text())
    for section, choices in MORE.items():
        params[section] = params.get(section, {}) | choices
    params["runs"] += RUNS
    (made / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.full
@pytest.mark.parametrize("key", ROWS)
def test_a_new_value_reruns_exactly(project, key):
    change, expected = ROWS[key]
    path = project / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    for place, value in change.items():
        *outer, last = place.split(".")
        section = params
        for name in outer:
            section = section[name]
        section[last] = value
        if value is None:
            del section[last]
    try:
        path.write_text(yaml.safe_dump(params))
        assert planned(project) == expected
    finally:
        path.write_text(before)


@pytest.mark.full
def test_rows_outside_the_project_are_inputs_of_a_score(finished, tmp_path):
    made, rows, score = tmp_path / "project", tmp_path / "rows.jsonl", "results/scores/tiny/full/piqa.json"
    shutil.copytree(finished, made)
    row = '{"goal": "dry a cup", "sol1": "use a towel", "sol2": "use a river", "label": LABEL}\n'
    rows.write_text(row.replace("LABEL", "0") * 4)
    params = yaml.safe_load((made / "params.yaml").read_text())
    params["evaluate"]["tasks"]["piqa"] = {"data_files": {"validation": str(rows)}}
    (made / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(made, "--allowed-rules", "evaluate", "--", score)
    assert done.returncode == 0, done.stderr
    assert planned(made, "--", score) == {}
    before = (made / score).read_text()
    rows.write_text(row.replace("LABEL", "1") * 4)
    assert planned(made, "--", score) == {"evaluate": 1}
    done = snakemake(made, "--allowed-rules", "evaluate", "--", score)
    assert done.returncode == 0 and (made / score).read_text() != before


def models_in(kind):
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in typing.get_args(kind) for model in models_in(part)]


def keys_of(model, start=""):
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        yield from (key for part in inner for key in keys_of(part, f"{start}{name}.")) if inner else [f"{start}{name}"]


def test_every_key_has_a_row():
    assert set(keys_of(Params)) == ROWS.keys() | ELSEWHERE.keys()
