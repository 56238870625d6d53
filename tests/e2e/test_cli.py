"""The command line on a finished run: inspect, plan, table, export."""

import json
import re
import shutil

import pytest
import torch
import yaml
from project import run
from tiny_project import planned, snakemake

import mergemoe
from mergemoe.artifacts import store
from mergemoe.checkpoints import cost
from mergemoe.workflow.planning import block_formats

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("cli") / "project")


def command(project, *args):
    return run(project, "mergemoe", *args, ok=False)


def test_inspect_tells_family_layers_and_what_each_ratio_saves(project):
    told = command(project, "inspect", "tiny-moe")
    assert told.returncode == 0, told.stderr
    assert "qwen3_moe" in told.stdout and "8 per layer, 3 work on a token" in told.stdout
    assert "2 (numbers 1 to 2)" in told.stdout and "This version can compress the model" in told.stdout
    left = int(re.search(r"^0\.5 +([\d,]+)", told.stdout, re.MULTILINE)[1].replace(",", ""))
    assert left == cost.count_cost(project / "results/models/tiny/mixed/half/average")["bytes"]
    assert re.search(r"^gate, up +32  Q4_0 to Q8_0  32$", told.stdout, re.MULTILINE)
    assert re.search(r"^down +24  F16 only +none$", told.stdout, re.MULTILINE)
    assert re.search(r"^down, width: 0.25 +8  F16 only +none$", told.stdout, re.MULTILINE)


def test_inspect_says_why_not(project, tmp_path):
    shutil.copytree(project / "tiny-moe", tmp_path / "quantized")
    config = json.loads((tmp_path / "quantized" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    refused = command(project, "inspect", str(tmp_path / "quantized"))
    assert refused.returncode != 0
    assert "quantized (fp8)" in refused.stderr and "Traceback" not in refused.stderr


def test_plan_equals_what_the_run_made(project, finished):
    told = command(project, "plan")
    assert told.returncode == 0, told.stderr
    for solve in ("average", "mergemoe"):
        counted = cost.count_cost(project / f"results/models/tiny/mixed/half/{solve}")
        assert re.search(rf"mixed/half/{solve} +{counted['parameters']:,} +{counted['bytes']:,}", told.stdout)
    jobs = dict(re.findall(r"^  (\w+) +(\d+)$", told.stdout, re.MULTILINE))
    logs = {rule: len([p for p in (finished / "logs" / rule).rglob("*.log")]) for rule in jobs if rule != "report"}
    assert {rule: int(count) for rule, count in jobs.items() if rule != "report"} == logs
    groups = [
        group["routed_tokens"]
        for path in (project / "results/cluster").rglob("*.json")
        for group in json.loads(path.read_text())["groups"]
    ]
    assert f"has {min(groups):,} in the smallest" in told.stdout
    assert re.search(r"formats that quantize.*\n.*\ngate, up +32 .*\ndown +24 .*\n\n", told.stdout)


@pytest.mark.parametrize(
    ("width", "fits"),
    [
        (768, "K-quants, Q4_0 to Q8_0  32, 64, 128"),
        (1408, "Q4_0 to Q8_0            32, 64, 128"),
        (96, "Q4_0 to Q8_0            32"),
        (40, "F16 only                none"),
    ],
)
def test_a_format_fits_rows_that_its_blocks_divide(width, fits):
    lines = block_formats.formats_table([2048], [("down", width), ("down", 768)]).splitlines()
    assert lines[2] == f"down{width:>13}  {fits}"


def test_plan_names_a_mistake(project, tmp_path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["solve"]["mergemoe"]["rigde"] = 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(params))
    refused = command(project, "plan", "--params", str(tmp_path / "wrong.yaml"))
    assert refused.returncode != 0
    assert "solve.mergemoe.rigde: unknown key" in refused.stderr and "Traceback" not in refused.stderr


def test_the_table_shows_every_run(project):
    told = command(project, "table").stdout
    assert "mixed/half/average" in told and "mixed/half/mergemoe" in told and "blimp/acc" in told


def test_export_gives_a_folder_that_loads_with_its_scores_on_the_card(project, tmp_path):
    exported = command(project, "export", "tiny/mixed/half/mergemoe+tuned", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr
    model = mergemoe.load(tmp_path / "out", "cpu")
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.isfinite().all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Scores" in card and "blimp/acc" in card
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    again = command(project, "export", "tiny/mixed/half/mergemoe+tuned", str(tmp_path / "out"))
    assert again.returncode != 0 and "exists" in again.stderr
    unknown = command(project, "export", "tiny/mixed/half/magic", str(tmp_path / "else"))
    assert "tiny/mixed/half/magic is not a finished run. Finished runs: tiny/mixed/half/average" in unknown.stderr


def test_plan_does_not_call_another_groupings_tokens_exact(project, tmp_path):
    changed = (project / "params.yaml").read_text().replace("experts: 0.5", "experts: 0.25")
    (tmp_path / "quarter.yaml").write_text(changed)
    told = command(project, "plan", "--params", str(tmp_path / "quarter.yaml")).stdout
    assert "8 -> 2 experts" in told and "(estimate)" in told and "in the smallest" not in told


def test_export_refuses_a_card_with_the_scores_of_another_checkpoint(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    path = project / "results/models/tiny/mixed/half/mergemoe/provenance.json"
    written = store.read_json(path)
    made = {key: value for key, value in written.pop("provenance").items() if key not in {"payload", "seal"}}
    store.write_json(path, {"files": written["files"] | {"config.json": "0" * 64}}, made)
    refused = command(project, "export", "tiny/mixed/half/mergemoe", str(tmp_path / "out"))
    assert refused.returncode != 0 and "scores of another checkpoint" in refused.stderr
    assert not (tmp_path / "out").exists()


EDITS = {
    "one number": lambda text: text.replace(b"0.", b"1.", 1),
    "nothing in it": lambda _: b"",
    "no front matter": lambda text: text.rpartition(b"---\n")[2],
    "no text": lambda _: bytes(range(256)),
    "another provenance": lambda _: b"---\nprovenance: '{}'\n---\n",
    "no YAML": lambda text: text.replace(b"---\n", b"---\n[\n", 1),
}


def test_export_refuses_a_card_that_the_report_did_not_write(finished, tmp_path):
    project, run = shutil.copytree(finished, tmp_path / "project"), "tiny/mixed/half/mergemoe"
    card = project / "results/cards" / f"{run}.md"
    whole = card.read_bytes()
    for name, edit in EDITS.items():
        card.write_bytes(edit(whole))
        assert card.read_bytes() != whole, name
        refused = command(project, "export", run, str(tmp_path / "out"))
        assert refused.returncode != 0 and "Traceback" not in refused.stderr, name
        assert f"{run}.md is not the file that was recorded (its sha256 differs)" in refused.stderr
    card.write_bytes(whole)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["x" * 5000, "tiny-moe/config.json/out", "/proc/out", "/dev/null"])
def test_export_says_why_a_folder_cannot_be_made(project, folder):
    refused = command(project, "export", "tiny/mixed/half/mergemoe", folder)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error: ") and len(refused.stderr) < 2000


@pytest.mark.parametrize("name", ["x" * 5000, "", "..", "tiny/mixed/half/../half/mergemoe", "tiny/mixed/half"])
def test_export_of_what_is_no_run(project, name, tmp_path):
    refused = command(project, "export", name, str(tmp_path / "out"))
    assert refused.returncode != 0 and "is not a finished run. Finished runs: tiny/mixed/half/average" in refused.stderr
    assert "Traceback" not in refused.stderr and len(refused.stderr) < 2000


def test_a_file_of_parameters_means_the_same_to_plan_and_to_snakemake(project, tmp_path):
    """It takes the place of params.yaml, whole: choices, tasks and runs that it does not name are not there."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["calibrate"] = {"own": {**params["calibrate"]["mixed"], "samples": 12}}
    params["cluster"] = {"most": {"by": "weights", "experts": 6}}
    params["solve"] = {"average": {"method": "average"}}
    params["evaluate"]["tasks"] = {}
    params["runs"] = "all"
    del params["refine"]
    (file := tmp_path / "mine of today.yaml").write_text(yaml.safe_dump(params))
    told = command(project, "plan", "--params", str(file)).stdout
    assert f"snakemake --cores all --configfile '{file}'" in told
    assert "--configfile" not in command(project, "plan").stdout
    fitted = {"calibrate": 1, "capture": 1, "profile": 2, "cluster": 2, "solve": 2, "assemble": 1}
    assert planned(project, "--configfile", str(file)) == {**fitted, "fidelity": 1, "generate": 1, "report": 1}
    for rule, count in fitted.items():
        assert re.search(rf"^ *{rule} +{count}\b", told, re.MULTILINE)


def test_another_folder_is_refused(project, tmp_path):
    (folder := tmp_path / "elsewhere").mkdir()
    shutil.copyfile(project / "params.yaml", folder / "params.yaml")
    done = snakemake(project, "--dry-run", "--directory", str(folder))
    assert done.returncode == 1
    assert "cannot run in" in done.stdout and "git worktree add" in done.stdout
