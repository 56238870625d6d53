"""Tasks that fail leave no score and spare the others; the partial report shows the rest and names the holes."""

import json
import re
import shutil

import pytest
import yaml
from tiny_project import ROOT, snakemake

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(600)]

RUNS = ("mixed/half/average", "mixed/half/mergemoe", "mixed/half/mergemoe+tuned")

# A task whose data is missing, and one whose rows need more memory than there is.
FOLDER = {
    "no_data.yaml": """
task: no_data
dataset_path: nobody/nowhere
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: ["a", "b"]
""",
    "large.yaml": """
include: no_data.yaml
task: large
dataset_path: json
dataset_kwargs: {data_files: {test: bad/wiki.jsonl.gz}}
process_docs: !function memory.full
""",
    "memory.py": """
def full(docs):
    raise MemoryError("cannot allocate")
""",
}


@pytest.fixture(scope="module")
def kept_going(finished, tmp_path_factory):
    """A finished project to which three tasks were added that fail, and what Snakemake said."""
    project = shutil.copytree(finished, tmp_path_factory.mktemp("kept") / "project")
    (project / "bad").mkdir()
    for name, text in FOLDER.items():
        (project / "bad" / name).write_text(text.lstrip())
    shutil.copy(project / "data/calibration/wiki.jsonl.gz", project / "bad")
    params = yaml.safe_load((project / "params.yaml").read_text())
    own = {name: {"include": "bad", "trust_code": True} for name in ("no_data", "large")}
    params["evaluate"]["tasks"] |= {"misspelt": {}, **own, "blimp_causative": {"include": "data/blimp", "limit": 2}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(project, "--keep-going")
    assert done.returncode != 0
    return project


def scores(project):
    return {str(path.relative_to(project / "results/scores")) for path in project.glob("results/scores/**/*.json")}


def test_the_other_scores_stay_and_the_failed_tasks_have_none(kept_going, finished):
    subjects = ["tiny/full", *(f"tiny/{run}" for run in RUNS)]
    assert scores(kept_going) == scores(finished) | {f"{subject}/blimp_causative.json" for subject in subjects}


def test_each_failure_says_the_key_of_params_yaml_and_what_helps(kept_going):
    logs = kept_going / "logs/evaluate/tiny/full"
    told = {name: (logs / f"{name}.log").read_text().splitlines()[-1] for name in ("misspelt", "no_data", "large")}
    assert re.match(r"error: evaluate\.tasks\.misspelt: lm-eval \S+ has no such task", told["misspelt"])
    assert told["no_data"].startswith("error: evaluate.tasks.no_data: its data cannot be loaded")
    assert told["large"].startswith("error: evaluate.tasks.large: out of memory with batch_size 32")


def test_the_report_is_not_made_and_the_partial_one_names_every_hole(kept_going, finished):
    before = (kept_going / "results/metrics.json").read_bytes()
    made = snakemake(kept_going, "report_partial", cores=1)
    assert made.returncode == 0, made.stderr
    page = (kept_going / "scratch/report_partial/index.html").read_text()
    assert "<title>MergeMoE report, partial</title>" in page
    assert "12 things are missing" in page
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td class="said">(.*?)</td>', page)
    assert {(subject, missing) for subject, missing, _ in rows} == {
        (f"tiny/{subject}", task) for subject in ("full", *RUNS) for task in ("misspelt", "no_data", "large")
    }
    assert all(f"evaluate.tasks.{missing}: " in said for _, missing, said in rows)
    numbers = json.loads(re.search(r'<script type="application/json" id="metrics">(.*?)</script>', page)[1])
    assert numbers["tiny"]["full"].keys() >= {"blimp/acc", "blimp_causative/acc", "fidelity/perplexity"}
    assert (kept_going / "results/metrics.json").read_bytes() == before  # of the run before the tasks were added


def test_a_partial_report_can_never_be_recorded(kept_going):
    snakemake(kept_going, "report_partial", cores=1)
    pages = [path.relative_to(kept_going).as_posix() for path in kept_going.rglob("index.html")]
    assert sorted(pages) == ["results/report/index.html", "scratch/report_partial/index.html"]
    assert "partial</title>" not in (kept_going / "results/report/index.html").read_text()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = [str(out) for stage in stages for out in [*stage.get("outs", []), *stage.get("metrics", [])]]
    assert outs and not any("scratch" in out for out in outs)
    assert "/scratch/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_was_made_with_other_parameters_is_not_shown_and_named(kept_going, tmp_path):
    project = shutil.copytree(kept_going, tmp_path / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluate"]["heldout"]["samples"] = 5
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    made = snakemake(project, "results/scores/tiny/full/fidelity.json")
    assert made.returncode == 0, made.stderr
    assert snakemake(project, "report_partial", cores=1).returncode == 0
    page = (project / "scratch/report_partial/index.html").read_text()
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td class="said">(.*?)</td>', page)
    stale = {
        (subject, missing) for subject, missing, said in rows if said.startswith("the artifact was made with other")
    }
    runs = {(f"tiny/{run}", "fidelity") for run in RUNS}
    assert stale == runs | {("tiny/full", "generation"), *((subject, "generation") for subject, _ in runs)}
    numbers = json.loads(re.search(r'<script type="application/json" id="metrics">(.*?)</script>', page)[1])["tiny"]
    assert "fidelity/perplexity" in numbers["full"] and "generation/loops" not in numbers["full"]
    assert all("fidelity/kl" not in run and "blimp/acc" in run for run in numbers["runs"].values())


LATE = """
task: late
dataset_path: json
dataset_kwargs: {data_files: {test: late/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: ["a", "b"]
"""


def test_a_task_that_cannot_be_scored_ends_a_run_before_anything_is_captured(finished, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project")
    for folder in ("results", ".snakemake"):
        shutil.rmtree(project / folder)
    (project / "late").mkdir()
    (project / "late/late.yaml").write_text(LATE.lstrip())
    (project / "late/rows.jsonl").write_text('{"q": "What?"}\n' * 4)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluate"]["tasks"] = {"late": {"include": "late"}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = snakemake(project, cores=1)
    assert done.returncode != 0
    told = (project / "logs/evaluate/tiny/full/late.log").read_text().splitlines()[-1]
    assert "evaluate.tasks.late.include: lm-eval cannot read the rows" in told and "'question' is undefined" in told
    assert not (project / "results/capture").exists()
