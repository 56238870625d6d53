"""The table of stages is the only list of stages: what reads it follows a new row, and nothing else disagrees."""

import ast
import re

import pytest
import yaml
from good_params import GOOD
from tiny_project import ROOT

from mergemoe.artifacts import paths, stages
from mergemoe.artifacts.stage import Holds, Stage
from mergemoe.artifacts.stages import STAGES
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import jobs, plan
from mergemoe.workflow.planning.resources import job_resources
from stages import ledger
from stages.support import expected
from stages.support.graph import Graph

TOY = Stage(
    name="toy",
    output="results/toy/{model}/{calibrate}/layer_{layer}.json",
    dvc="toy",
    reads=("layout", "capture"),
    sections=("calibrate",),
    holds=Holds(base=100),
)


@pytest.fixture
def toy(monkeypatch):
    """The parameters of the demo, with one more stage in the table."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(STAGES, "toy", TOY)
    return read_params(GOOD)


def test_a_new_row_has_jobs_claims_and_a_dvc_stage(toy):
    graph = Graph(toy)
    wanted = [{"model": "demo", "calibrate": "mixed", "layer": f"{layer:03d}"} for layer in graph.layers["demo"]]
    assert [names for stage, names in jobs.every_job(toy) if stage == "toy"] == wanted
    assert plan.count_jobs(toy)["toy"] == len(wanted) == len(graph.targets()["toy"])
    claim = expected.every_claim(graph)["results/toy/demo/mixed/layer_000.json"]
    assert claim["stage"] == "toy" and claim["params"] == toy.calibrate["mixed"].model_dump()
    entry = ledger.stages(graph)["toy"]
    assert entry["cmd"] == "snakemake --cores all --allowed-rules toy stage_toy -- stage_toy"
    assert entry["outs"] == ["results/toy"] and entry["params"] == ["calibrate", "runs"]
    assert [path for path in entry["deps"] if path.startswith("results/")] == ["results/layout", "results/capture"]
    assert TOY.log == "logs/toy/{model}/{calibrate}/layer_{layer}.log"


def test_the_snakefile_the_modules_and_dvc_yaml_have_the_stages_of_the_table():
    rules = re.findall(r"^rule (\w+):", (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert [rule for rule in rules if rule != "all"] == list(STAGES)
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "ledger"}
    assert modules == set(STAGES)
    known = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert known == [stage for stage in stages.dvc_stages() if stage in known]  # in its order


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_each_row_fits_its_module(stage):
    """The name that a module gives to its artifacts, and whether it writes two files."""
    tree = ast.parse((ROOT / "stages" / f"{stage.name}.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "command.stage"
    ]
    if calls:
        assert ast.literal_eval(calls[0].args[0]) == stage.name
        pair = any(one.arg == "pair" and ast.literal_eval(one.value) for one in calls[0].keywords)
        assert pair == stage.pair
    assert all(other in STAGES for other in stage.reads)


def test_memory_and_gpus_are_asked_for_the_stages_of_the_table():
    reading = [name for name, stage in STAGES.items() if stage.checkpoint != "none"]
    assert all(hasattr(job_resources._Job, name) for name in [*reading, "report", "calibrate"])
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    asked = {name for name, resources in profile["set-resources"].items() if "gpu" in resources}
    assert asked == {name for name, stage in STAGES.items() if stage.device == "gpu"}


def test_every_path_of_a_stage_is_in_the_module_of_paths():
    patterns = {value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)}
    for stage in STAGES.values():
        assert stage.output in patterns and stage.finished in patterns | {paths.provenance_of(stage.output)}
        assert set(stage.wildcards) <= set(paths.PATTERNS)
