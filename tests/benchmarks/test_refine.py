"""The bench of refines: each run is there without and with a refine, and the documents show what was measured."""

import importlib.util
import json
import re

import pytest
from tiny_project import ROOT

from mergemoe.workflow.config.params import read_params

spec = importlib.util.spec_from_file_location("refine_bench", ROOT / "benchmarks" / "refine.py")
refine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(refine)


@pytest.mark.parametrize("piece", refine.PIECES)
def test_every_run_of_a_piece_is_there_without_and_with_a_refine(piece):
    params = read_params(refine.params(piece, 1))
    runs = params.all_runs()
    bare = [run for run in runs if run.refine is None]
    assert len(bare) == len(refine.METHODS)
    assert {calibrate.seed for calibrate in params.calibrate.values()} == {1}
    assert sorted(run._replace(refine="tuned") for run in bare) == sorted(run for run in runs if run.refine)
    share = refine.methods.SHARES[refine.PIECES[piece][2]]
    widths = [params.kept_width(run.cluster, run.solve, 128) / 128 for run in runs]
    assert {params.cluster[run.cluster].experts * width for run, width in zip(runs, widths, strict=True)} == {share}


def write_results(project, seed):
    """Write what a run of one seed leaves: its scores and its jobs' logs."""
    runs = {}
    for place, method in enumerate(refine.METHODS, 1):
        name = f"mixed_{seed}/none/slim_50" if method == "slim" else f"mixed_{seed}/some_50/{method}"
        runs[name] = {"fidelity/kl": place * (seed + 1.0), "fidelity/perplexity": 50.0}
        runs[f"{name}+tuned"] = {"fidelity/kl": place * (seed + 1.0) / 10, "fidelity/perplexity": 45.0}
    metrics = {"demo": {"full": {"fidelity/perplexity": 40.0}, "runs": runs}}
    (project / "results/metrics.json").write_text(json.dumps(metrics))
    for name in runs:
        for layer, seconds in (("000", 2.0), ("001", 4.0)):
            rule, last = ("refine", "tuned/") if "+" in name else ("solve", "")
            log = project / f"logs/{rule}/demo/{name.removesuffix('+tuned')}/{last}layer_{layer}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"CPU time: 99.0 s\ntorch\nCPU time: {seconds * 10 if last else seconds} s\n")


def test_the_table_shows_each_method_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "FOLDER", tmp_path / "kept")
    (tmp_path / "results").mkdir()
    for seed in range(3):
        assert refine.left("demo_64_50") == [0, 1, 2][seed:]
        write_results(tmp_path, seed)
        refine.keep("demo_64_50", tmp_path)
        if seed == 1:
            assert next(refine.table()) == "demo-moe, calibrated on 64 sequences (2 of 3 seeds so far)"
    assert refine.left("demo_64_50") == [] and refine.left("demo_64_25") == [0, 1, 2]
    lines = list(refine.table())
    assert lines[0] == "demo-moe, calibrated on 64 sequences"
    assert "| | KL at 50% | perplexity at 50% | CPU seconds a layer at 50% |" in lines
    assert "| reap (stock) | 6 ± 3 → 0.6 ± 0.3 | 50 ± 0 → 45 ± 0 | 3 ± 0 → 30 ± 0 |" in lines
    assert lines[-2].startswith("- At 50%, the KL of `select+tuned` is 3.3 times lower than `mergemoe`'s")


def test_the_seven_tasks_are_scored_on_local_files_if_there_are_any(monkeypatch):
    monkeypatch.setenv("MERGEMOE_SHARED", "/texts")
    tasks = read_params(refine.params(refine.SCORED, 0)).evaluate.tasks
    assert {name: list(task.data_files.values()) for name, task in tasks.items()}["piqa"] == [
        "/texts/data/piqa_validation.jsonl.gz"
    ]
    monkeypatch.delenv("MERGEMOE_SHARED")
    assert set(read_params(refine.params(refine.SCORED, 0)).evaluate.tasks) == set(refine.seven_tasks.FILES)


def test_the_table_of_tasks_shows_each_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "FOLDER", tmp_path)
    scores = {f"{task}/{'contains' if task == 'squad_completion' else 'acc'}": 0.5 for task in refine.seven_tasks.FILES}
    better = {**scores, "piqa/acc": 0.571}
    runs = {}
    for method in refine.METHODS:
        name = "mixed_0/none/slim_50" if method == "slim" else f"mixed_0/some_50/{method}"
        runs |= {name: scores, f"{name}+tuned": better}
    (tmp_path / f"{refine.SCORED}.json").write_text(json.dumps({"demo": {"full": scores, "runs": runs}}))
    lines = list(refine.table())
    assert "| full model | " + " | ".join(["50.0"] * 8) + " |" in lines
    assert "| slim | 50.0 → 51.0 | 50.0 → 50.0" in "\n".join(lines) and "50.0 → 57.1" in lines[-2]


def test_the_documents_show_what_was_measured():
    text = "".join((ROOT / file).read_text() for file in ("docs/benchmarks.md", "docs/log.md"))
    shown = re.findall(r"<!-- table: python benchmarks/refine.py table -->\n(.*?)<!-- end", text, re.DOTALL)
    assert bool(shown) == any(refine.FOLDER.glob("*.json"))
    for table in shown:
        assert table.strip() == "\n".join(refine.table()).strip()
