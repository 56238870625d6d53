"""dvc.yaml against the Snakefile and the code: the ledger and the engine never drift."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from project import change, run
from quantized import make_fp8
from tiny_project import ROOT, copy_project, snakemake

from mergemoe.artifacts import stages
from mergemoe.workflow.config.params import read_params
from stages import ledger
from stages.support import expected, tracking
from stages.support.graph import Graph

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RULES = re.findall(r"^rule (\w+):", (ROOT / "Snakefile").read_text(), re.MULTILINE)


def params_of(tiny):
    """The project's parameters on the tiny model."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return read_params({**params, "model": {"tiny": {"path": str(tiny)}}, "runs": "all"})


def rules_of(stage):
    """The rules that a stage's command allows."""
    return re.search(r"--allowed-rules (.+) stage_(\w+) -- stage_\2$", STAGES[stage]["cmd"])[1].split()


def test_every_rule_belongs_to_one_stage_in_the_snakefiles_order(tiny):
    kept = [rule for rule in RULES if rule in stages.STAGES and stages.STAGES[rule].dvc in STAGES]
    assert [rule for stage in STAGES for rule in rules_of(stage)] == kept
    assert list(STAGES) == list(Graph(params_of(tiny)).targets())


def test_dvc_yaml_is_what_the_code_and_params_yaml_make_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    graph = Graph(read_params(yaml.safe_load((ROOT / "params.yaml").read_text())))
    text = (ROOT / "dvc.yaml").read_text()
    assert ledger.renewed(text, graph) == text, "`mergemoe record` writes it"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_its_rules_run(stage):
    code = tracking.sources(*(f"stages.{rule}" for rule in rules_of(stage)))
    listed = set(STAGES[stage]["deps"])
    assert {path.relative_to(ROOT).as_posix() for path in code} <= listed
    assert ("mergemoe/methods/select.py" in listed) == (stage == "solve")  # loaded by name
    assert ("mergemoe/methods/zipit.py" in listed) is False  # the demo has no run of it


def test_what_a_user_sets_in_dvc_yaml_stays(tiny):
    graph = Graph(params_of(tiny))
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    document["stages"]["capture"]["outs"] = [{"results/capture": {"push": False}}]
    document["stages"]["mine"] = {"cmd": "true"}
    document["plots"] = [{"mine": {"x": "a"}}]
    made = yaml.safe_load(ledger.renewed(yaml.safe_dump(document, sort_keys=False), graph))
    assert made["stages"]["capture"]["outs"] == [{"results/capture": {"push": False}}]
    assert made["stages"]["mine"] == {"cmd": "true"} and made["plots"] == document["plots"]
    assert made["stages"]["capture"]["deps"][0] == str(tiny)
    assert list(made["stages"]) == [*STAGES, "mine"]


def test_comments_in_dvc_yaml_stay(tiny):
    comments = ["# at the top", "# of a stage", "# of an input", "# of an output", "# below a list", "# of a plot"]
    text = """\
# at the top
stages:
  # of a stage
  layout:
    cmd: old
    deps:
      - mergemoe/errors.py # of an input
      - gone.py
    # below a list
    outs:
      - results/layout: {push: false} # of an output
  mine:
    cmd: "true"
plots:
  - mine: {x: a} # of a plot
"""
    graph = Graph(params_of(tiny))
    made = ledger.renewed(text, graph)
    assert [comment for comment in comments if made.count(comment) == 1] == comments
    lines = made.splitlines()
    assert "      - mergemoe/errors.py # of an input" in lines and "gone.py" not in made
    assert lines[lines.index("    # below a list") + 1] == "    outs:"  # below the list, which grew
    assert "      - results/layout: {push: false} # of an output" in lines
    assert list(yaml.safe_load(made)["stages"]) == [*STAGES, "mine"]
    assert ledger.renewed(made, graph) == made


def test_a_new_dvc_yaml_says_what_it_is(tiny):
    assert ledger.renewed("", Graph(params_of(tiny))).startswith("# The ledger: one stage per workflow stage")


def test_outputs_and_inputs_follow_params_yaml(tmp_path, tiny):
    make_fp8(shutil.copytree(tiny, tmp_path / "fp8"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"] = {"fp8": {"path": str(tmp_path / "fp8"), "dequantize": True}}
    params["cluster"] = {"used": {"by": "weights", "experts": 0.5, "budget": "usage"}}
    params["evaluate"]["tasks"] = {"piqa": {"data_files": {"validation": "mine.jsonl"}}}
    made = ledger.stages(Graph(read_params({**params, "runs": [["fp8", "mixed", "used", "average"]]})))
    assert made["layout"]["outs"] == ["results/layout", "results/convert"]
    assert made["layout"]["deps"][0] == str(tmp_path / "fp8") and made["solve"]["deps"][0] == "results/convert"
    assert made["cluster"]["outs"] == ["results/cluster", "results/budget"]  # usage is spent without curves
    assert {"mine.jsonl", "data/heldout/mixed.jsonl.gz"} <= set(made["evaluate"]["deps"])
    assert "mergemoe/methods/select.py" not in made["solve"]["deps"]


REFINED = ["tiny", "mixed", "pairs", "select", "tuned"]


@pytest.fixture
def plain_and_refined(tiny):
    """The parameters of one run, and of the same with a refine, as graphs."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"model": {"tiny": {"path": str(tiny)}}}
    refine = {"tuned": {"by": "layer"}}
    return [
        Graph(read_params({**params, "refine": {}, "runs": [REFINED[:4]]})),
        Graph(read_params({**params, "refine": refine, "runs": [REFINED[:4], REFINED]})),
    ]


def test_a_stage_that_no_run_needs_is_in_dvc_yaml_only_while_one_does(plain_and_refined):
    plain, refined = plain_and_refined
    assert "refine" not in ledger.stages(plain)
    made = ledger.stages(refined)
    assert made["refine"]["outs"] == ["results/refine"] and made["refine"]["params"] == ["refine", "runs"]
    needed = {path for path in made["refine"]["deps"] if path.startswith("results/")}
    assert needed == {"results/layout", "results/capture", "results/solve"}
    before, after = (ledger.stages(graph)["assemble"] for graph in (plain, refined))
    assert after["params"] == [*before["params"][:-1], "refine", "runs"]
    assert set(after["deps"]) - set(before["deps"]) == {"results/refine"}
    text = ledger.renewed(ledger.renewed("", refined), plain)
    assert text == ledger.renewed("", plain)
    assert list(yaml.safe_load(ledger.renewed(text, refined))["stages"]) == list(made)


def test_a_refine_changes_no_claim_of_a_run_without(plain_and_refined):
    before, after = map(expected.every_claim, plain_and_refined)
    assert {path: after[path] for path in before if "report" not in path} == {
        path: claim for path, claim in before.items() if "report" not in path
    }
    made = {path.partition("/")[2] for path in after.keys() - before.keys()}
    assert made == {
        *(f"refine/tiny/mixed/pairs/select/tuned/layer_00{layer}.safetensors" for layer in (1, 2)),
        "models/tiny/mixed/pairs/select+tuned",
        *(f"scores/tiny/mixed/pairs/select+tuned/{score}.json" for score in ("fidelity", "generation", "blimp")),
    }
    assert after["results/models/tiny/mixed/pairs/select+tuned"]["params"]["refine"]["name"] == "tuned"
    assert "refine" not in after["results/models/tiny/mixed/pairs/select"]["params"]


@pytest.mark.full
@pytest.mark.workflow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("more", ["plain", "budgets of a copied checkpoint"])
def test_a_claim_is_what_the_job_is_told(tmp_path, more):
    project = copy_project(tmp_path / "project")
    if more != "plain":
        make_fp8(project / "tiny-moe")
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["model"]["tiny"]["dequantize"] = True
        params["cluster"] |= {
            "own": {"by": "selection", "share": 0.5, "per": "layer", "layers": "1-1"},
            "used": {"by": "weights", "experts": 0.5, "budget": "usage"},
        }
        params["solve"]["picked"] = {"method": "select", "width": "auto"}
        params["quantize"] = {"g4": {"by": "gptq", "bits": 4, "group": 8}}
        params["runs"] = "all"
        (project / "params.yaml").write_text(yaml.safe_dump(params))
    dry = snakemake(project, "--dry-run", "--printshellcmds")
    assert dry.returncode == 0, dry.stderr
    told = {}
    for line in re.findall(r"python -m stages\.(.*) 2> ", dry.stdout):
        stage, *options = shlex.split(line.replace("$(dirname ", "").replace("/provenance.json)", ""))
        value = {key: options[options.index(key) + 1] for key in ("--cfg", "--code", "--out")}
        told[value["--out"]] = {"stage": stage, "params": json.loads(value["--cfg"]), "code": value["--code"]}
    command = [sys.executable, "-m", "stages.ledger"]
    made = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    assert json.loads(made)["claims"] == told
    rules = {"convert", "curve", "budget", "quantize"} if more != "plain" else set()
    assert {one["stage"] for one in told.values()} == set(RULES) - {
        "all",
        "report_partial",
        "convert",
        "curve",
        "budget",
        "quantize",
    } | rules


@pytest.mark.full
@pytest.mark.workflow
@pytest.mark.timeout(900)
def test_dvc_shows_metrics_and_plots_and_a_parameter_set_back_costs_nothing(recorded, tmp_path):
    project = shutil.copytree(recorded, tmp_path / "project")
    assert '"fidelity/kl"' in run(project, "dvc", "metrics", "show", "--json").stdout
    plots = json.loads(run(project, "dvc", "plots", "show", "--json", "--split").stdout)
    bars = plots["data"]["KL to the full model of every run"][0]["anchor_definitions"]["<DVC_METRIC_DATA>"]
    assert {bar["run"]: bar["fidelity/kl"] for bar in bars}.keys() >= {"mixed/half/mergemoe"}
    run(project, "dvc", "exp", "run", "--name", "damped", "--set-param", "solve.mergemoe.ridge=0.1")
    assert "ridge: 0.1" in (project / "params.yaml").read_text()
    assert "0.1" in run(project, "dvc", "params", "diff").stdout
    assert "mixed/half/mergemoe" in run(project, "dvc", "metrics", "diff").stdout
    assert "KL to the full model" in run(project, "dvc", "plots", "diff", "--json", "--split").stdout
    change(project, "ridge: 0.1", "ridge: 0.0")
    back = run(project, "dvc", "repro").stdout
    assert "is cached - skipping run, checking out outputs" in back and "Running stage" not in back
    assert run(project, "git", "diff", "--name-only", "dvc.lock", "results").stdout == ""
