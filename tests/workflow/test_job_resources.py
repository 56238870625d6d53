"""Estimates of what a job needs: they grow with what drives a stage's peak, and with nothing else."""

import importlib.machinery
import importlib.util
import inspect
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.iocontainers import Wildcards

from benchmarks.needs import wildcards
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.stages import STAGES
from mergemoe.checkpoints import expert_headers
from mergemoe.compressed import assemble
from mergemoe.merging import neuron_selection
from mergemoe.moe import layer_sizes
from mergemoe.moe.tokens import Activations
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import plan
from mergemoe.workflow.planning.resources import job_resources, layer_resources, solve_work

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPINGS = {"half": {"by": "weights", "experts": 0.5}, "pairs": {"by": "selection", "experts": 0.5}}
RUN = {"model": "wide", "calibrate": "text", "cluster": "half", "solve": "joint", "solution": "joint", "layer": "000"}

G4 = {"g4": {"by": "gptq", "bits": 4}}


def write_headers(folder, layers=1, hidden=512, width=256, experts=16, dtype="BF16"):
    """A checkpoint of qwen3_moe whose weights are a hole in a file."""
    config = {"model_type": "qwen3_moe", "hidden_size": hidden, "num_experts": experts, "num_experts_per_tok": 4}
    config |= {"num_hidden_layers": layers, "vocab_size": 1024, "moe_intermediate_size": width}
    shapes = {"model.embed_tokens.weight": [1024, hidden]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.q_proj.weight": [hidden, hidden], f"{name}.mlp.gate.weight": [experts, hidden]}
        for expert in range(experts):
            for role in ("gate", "up", "down"):
                shape = [hidden, width] if role == "down" else [width, hidden]
                shapes[f"{name}.mlp.experts.{expert}.{role}_proj.weight"] = shape
    header, end, size = {}, 0, {"BF16": 2, "F32": 4}[dtype]
    for key, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.fixture
def study(tmp_path):
    """params.yaml of a model that is only headers; changes are of its sizes, and of sections by their names."""
    made = []

    def make(sizes=None, samples=16, solve=None, **sections):
        made.append(write_headers(tmp_path / f"wide{len(made)}", **(sizes or {})))
        text = {"source": "text.txt", "samples": samples, "length": 256}
        whole = {
            "model": {"wide": {"path": str(made[-1])}},
            "calibrate": {"text": text},
            "capture": {"dtype": "float32", "batch_tokens": 256},
            "cluster": GROUPINGS,
            "solve": {"joint": {"method": "joint", **(solve or {})}, "routed": {"method": "routed"}},
            "evaluate": {"heldout": text, "dtype": "float32", "batch_tokens": 256},
            "runs": "all",
        }
        return read_params({**whole, **sections})

    return make


def demo(runs="all", **calibrate):
    """The demo's parameters, with a refine and a quantization."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"]["demo"]["path"] = str(ROOT / params["model"]["demo"]["path"])
    params["calibrate"]["mixed"] |= calibrate
    return read_params({**params, "refine": {"tuned": {"by": "layer"}}, "quantize": G4, "runs": runs})


@pytest.mark.parametrize("stage", ["capture", "profile", "cluster", "solve", "reference", "fidelity", "evaluate"])
def test_work_grows_with_the_tokens(stage):
    names = {"model": "demo", "calibrate": "mixed", "cluster": "pairs", "solve": "select", "layer": "003"}
    names |= {"subject": "mixed/pairs/select", "task": "blimp"}
    few, many = demo(), demo(samples=640)
    grown = job_resources.job_need(many, stage, names).flops / job_resources.job_need(few, stage, names).flops
    assert grown == 1 if stage in {"reference", "fidelity", "evaluate"} else grown > 2  # of the calibration's


def test_a_grouping_by_selection_holds_more_than_none():
    params, names = demo(), {"model": "demo", "calibrate": "mixed", "cluster": "pairs", "layer": "003"}
    assert (
        job_resources.job_need(params, "cluster", names).memory
        > job_resources.job_need(params, "cluster", names | {"cluster": "half"}).memory
    )


def test_a_quick_search_asks_for_less_than_a_full_one(study):
    cluster = {"pairs": GROUPINGS["pairs"], "quick": {**GROUPINGS["pairs"], "search": "quick"}}
    params = study(cluster=cluster, runs=[["wide", "text", "pairs", "routed"]])
    full, quick = (job_resources.job_need(params, "cluster", RUN | {"cluster": name}) for name in cluster)
    assert quick.memory < full.memory and quick.flops < full.flops


def test_every_stage_of_the_demo_has_an_estimate():
    params = demo()
    for run in params.all_runs():
        names = {**run.wildcards, "layer": "003", "task": "blimp"}
        without = {name for name in ("refine", "quantize") if getattr(run, name) is None}
        for stage in STAGES.keys() - without:
            for subject in ("full", run.subject):
                need = job_resources.job_need(params, stage, {**names, "subject": subject})
                assert need.memory > 0
                assert [type(value) for value in need] == [int, int, int, int, float]
                assert (need.gpu > 0) == ("devices.set_up_torch" in (ROOT / "stages" / f"{stage}.py").read_text())


def test_importing_it_imports_neither_torch_nor_transformers_nor_snakemake():
    heavy = "print({'torch', 'transformers', 'snakemake'} & set(sys.modules))"
    code = f"import sys, mergemoe.workflow.planning.resources.job_resources; {heavy}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_numbers_of_the_code_that_it_counts_with_are_the_code_s():
    assert neuron_selection.GRAM_BYTES == layer_sizes.GRAM_BYTES
    assert inspect.signature(Activations.chunks).parameters["rows"].default == layer_resources.CHUNK
    assert inspect.signature(assemble.assemble).parameters["shard_bytes"].default == job_resources.SHARD


@pytest.mark.parametrize("stage", ["capture", "reference"])
def test_a_streamed_pass_holds_one_layer_stored_and_loaded_however_many_there_are(study, stage):
    one, eight, wider = (
        job_resources.job_need(study(sizes), stage, RUN).memory
        for sizes in ({}, {"layers": 8}, {"width": 2 * 256, "layers": 8})
    )
    assert one == eight
    more = 3 * 16 * 512 * 256 * (2 + 4)  # bfloat16 in the file, float32 in memory
    assert wider - eight == pytest.approx(job_resources.MARGIN * more / 1e6, abs=2)


@pytest.mark.parametrize("stage", ["fidelity", "generate"])
def test_a_model_that_is_loaded_whole_grows_with_its_layers(study, stage):
    evaluate = {"source": "text.txt", "samples": 16, "length": 256}
    evaluate = {"heldout": evaluate, "generation": {"prompts": 4}, "dtype": "float32"}
    names = {**RUN, "subject": "text/half/joint"}
    two, eight = (job_resources.job_need(study({"layers": n}, evaluate=evaluate), stage, names).memory for n in (2, 8))
    assert eight - two >= 6 * 4 * (3 * 8 * 512 * 256) / 1e6  # half of the experts at least


@pytest.mark.parametrize("stage", ["calibrate", "capture", "reference", "fidelity"])
def test_tokens_that_are_held_at_once_count(study, stage):
    names = {**RUN, "subject": "text/half/joint"}
    few, many = (job_resources.job_need(study(samples=samples), stage, names) for samples in (256, 2560))
    tokens = 256 * (2560 - 256)
    assert many.memory - few.memory >= tokens * (4 * 512 if stage != "calibrate" else 64) / 1e6
    assert stage == "calibrate" or many.flops >= 9 * few.flops


@pytest.mark.parametrize("stage", ["profile", "cluster", "solve"])
def test_a_layer_s_stages_hold_no_more_tokens_than_a_chunk_and_a_check_take(study, stage):
    many, more = (job_resources.job_need(study(samples=samples), stage, RUN) for samples in (256, 2560))
    assert many.memory == more.memory


def test_the_disk_of_a_capture_holds_its_activations_twice(study):
    params = study(samples=512)
    assert job_resources.job_need(params, "capture", RUN).disk * 1e6 >= 2 * plan.disk(params)["captures"]


def test_a_joint_solve_grows_with_its_grams_until_its_memory(study):
    def memory(experts, **solve):
        params = study({"experts": 64}, solve=solve, cluster={"half": {"by": "weights", "experts": experts}})
        return job_resources.job_need(params, "solve", RUN).memory

    columns = [m * 256 for m in (8, 16, 32)]
    found = [memory(m) for m in (8, 16, 32)]
    for (one, less), (other, larger) in zip(zip(columns, found), zip(columns[1:], found[1:])):  # noqa: B905
        assert larger - less >= 8 * 6 * (other**2 - one**2) / 1e6
    assert memory(32, ridge=1.0, memory=0.1) < memory(32, ridge=1.0, memory=0.2) < found[2] / 2


def test_a_refine_holds_the_state_of_the_kept_experts_and_its_tokens_on_disk(study):
    def need(kept=8, samples=16, **choice):
        groups, refine = (
            {"half": {"by": "weights", "experts": kept}},
            {"tuned": {"by": "layer", "steps": 400, **choice}},
        )
        return job_resources.job_need(study(samples=samples, cluster=groups, refine=refine), "refine", names)

    names, numbers = RUN | {"refine": "tuned"}, 3 * 512 * 256
    more = need(kept=12).memory - need(kept=8).memory
    assert more == pytest.approx(job_resources.MARGIN * 28 * 4 * numbers / 1e6, abs=2)
    targets = 4 * 16 * 256 * 512 / 1e6
    assert need().disk - need(targets="recomputed").disk == pytest.approx(targets, abs=1)
    assert need(samples=160).memory - need().memory >= 9 * 2 * targets  # the files are mapped
    assert need(samples=160).disk - need().disk == pytest.approx(9 * 2 * targets, abs=1)
    assert need(targets="recomputed").flops > need(steps=800).flops - need().flops > 0.8 * need().flops
    assert need(steps="auto").flops > need(steps=800).flops
    assert need(steps=0).flops == 2 * 16 * 256 * 4 * numbers  # the targets: 4 experts work on a token


def test_the_plan_tells_the_scratch_of_a_refine_if_a_run_has_one(study, tmp_path):
    refined = plan.plan_text(study(samples=1024, refine={"tuned": {"by": "layer"}}), tmp_path)
    kept = 2 * 4 * 1024 * 256 * 512 / 1e6
    told = f"fitted on its grids: up to {kept:,.1f} MB, or {kept / 2:,.1f} MB with `targets: recomputed`"
    assert told in refined and "text/half/joint+tuned" in refined
    rounded = study(samples=1024, quantize={"d2": {"by": "descent", "bits": 2}})
    assert told in plan.plan_text(rounded, tmp_path)
    assert "refined" not in plan.plan_text(study(quantize=G4), tmp_path)


def test_a_quantization_by_descent_holds_and_writes_what_a_refine_does_too(study):
    choices = {**G4, "d2": {"by": "descent", "bits": 2}}
    params, names = study(quantize=choices, refine={"tuned": {"by": "layer"}}), RUN | {"refine": "tuned"}
    gptq, descent = (job_resources.job_need(params, "quantize", {**names, "quantize": name}) for name in choices)
    refine = job_resources.job_need(params, "refine", names)
    assert descent.memory > max(gptq.memory, refine.memory)
    assert descent.flops == gptq.flops + refine.flops
    assert descent.disk == pytest.approx(gptq.disk + refine.disk, abs=3)  # each in whole MB, with a constant


def test_bits_that_are_spent_by_error_take_more_passes_and_the_matrices_that_are_tried(study):
    choices = {"whole": {"by": "gptq", "bits": 3}, "mean": {"by": "gptq", "bits": 2.5}}
    params = study(quantize=choices)
    whole, mean = (job_resources.job_need(params, "quantize", {**RUN, "quantize": name}) for name in choices)
    assert mean.flops > 2 * whole.flops and mean.memory >= whole.memory and mean.disk == whole.disk


def test_checkpoints_are_as_large_as_the_plan_says(study):
    params = study({"layers": 3}, cluster={"half": {"by": "weights", "experts": 3, "layers": "1-2"}})
    run = Run("wide", "text", "half", "routed")
    assert (
        job_resources.job_need(params, "assemble", run.wildcards).disk
        == math.ceil(plan.run_size(params, run)["bytes"] / 1e6) + 1
    )


def test_what_lies_outside_a_grouping_s_layers_is_only_read(study):
    params = study({"layers": 2}, cluster={"half": {"by": "weights", "experts": 3, "layers": "1"}})
    outside, inside = (job_resources.job_need(params, "solve", {**RUN, "layer": layer}) for layer in ("000", "001"))
    assert outside.disk == 1 < inside.disk  # its record alone
    assert outside.flops < inside.flops


def test_it_takes_wildcards_as_snakemake_gives_them(study):
    params = study()
    names: Any = Wildcards(fromdict=RUN)
    for stage in ("capture", "profile", "cluster", "solve"):
        assert job_resources.job_need(params, stage, names) == job_resources.job_need(params, stage, RUN)


def test_headers_are_read_once_per_model(study, monkeypatch):
    params, read = study(), []
    real = expert_headers.read_plain_headers
    monkeypatch.setattr(expert_headers, "read_plain_headers", lambda path: read.append(path) or real(path))
    for _ in range(3):
        for stage in ("capture", "solve", "assemble"):
            job_resources.job_need(params, stage, RUN)
    assert len(read) == 1


def test_a_method_that_nobody_listed_counts_as_a_solve_group_by_group(study):
    params = study({"experts": 64})
    layer = job_resources._Job(params, RUN)._layer()
    unlisted, routed, average = (layer_resources.solve_held(layer, name, {}) for name in ("new", "routed", "average"))
    assert unlisted == routed and unlisted.tensors > average.tensors


def test_a_log_s_path_gives_the_wildcards_of_its_job():
    found = wildcards("model subject task", ("demo", "mixed", "half", "average", "blimp"))
    assert found == {"model": "demo", "subject": "mixed/half/average", "task": "blimp"}
    assert wildcards("model subject", ("demo", "full")) == {"model": "demo", "subject": "full"}
    assert wildcards("model calibrate layer", ("demo", "mixed", "layer_007"))["layer"] == "007"


def test_a_stage_takes_no_more_than_its_estimate_and_half_of_it_at_least(tiny, tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"]["demo"]["path"] = str(tiny)
    command = [sys.executable, "-m", "stages.layout", "--cfg", json.dumps({"path": str(tiny)}), "--code", "none"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True)
    peak = json.loads(re.findall("^ran in: (.*)$", done.stderr, re.MULTILINE)[0])["peak_mb"]
    estimate = job_resources.job_need(read_params(params), "layout", {"model": "demo"}).memory
    assert peak <= estimate <= 2 * peak


@pytest.mark.parametrize(
    ("line", "more"), [("cuda: Optional[str] = '13.0'", True), ("cuda: Optional[str] = None", False)]
)
def test_a_cuda_build_of_torch_takes_more_memory(line, more, tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("")
    (tmp_path / "torch/version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = None\n")
    spec = importlib.machinery.PathFinder.find_spec("torch", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    job_resources.cuda_libraries.cache_clear()
    try:
        assert job_resources.cuda_libraries() == (job_resources.CUDA_BUILD if more else 0)
    finally:
        job_resources.cuda_libraries.cache_clear()


LAYER = layer_resources.Layer(
    experts=8, kept=4, width=100, kept_width=100, largest=2, numbers=3 * 8 * 100 * 300, bytes=2 * 3 * 8 * 100 * 300,
    hidden=300, top_k=2, tokens=1000, inside=True,
)  # fmt: skip


def test_the_work_of_mergemoe_is_that_of_its_products():
    """Features of all members (gate and up), H_j P^T, half of P P^T in float64, on all tokens; then what is left."""
    products = 1000 * (8 * (4 * 300 * 100 + 2 * 100**2) + 2 * 4 * 100**2)
    rest = 2 * 8 * 300 * 100**2 + 2 * 4 * 100**2 * (2 * 300 + solve_work.EIGEN * 100)
    outputs = 1000 * 2 * (6 * 300 * 100) * 2
    assert solve_work.solve_work(LAYER, "mergemoe", {}, "direct") == products + rest + outputs


@pytest.mark.parametrize("way", ["direct", "kernel", "iterative", "streamed"])
def test_the_work_of_a_joint_solve_is_at_least_its_factors_or_passes(way):
    options = {"ridge": 0.1, "memory": 0.001}
    rows, columns, tokens = 300 * solve_work.EXACT, 400, 20_000 if way == "kernel" else 1000
    least = {
        "direct": 2 * (columns**3 / 3 + 8 * 300 * columns**2),
        "kernel": 2 * (tokens**3 / 3 + 2 * 300 * tokens**2),
        "iterative": rows * 4 * (2000 * 100 + 4 * 100**2),
        "streamed": rows * 4 * (2000 * 100 + 4 * 100**2) + solve_work.EXACT * 8 * 2000 * 4 * 300 * 100,
    }
    work = solve_work.solve_work(LAYER._replace(tokens=tokens), "joint", options, way)
    assert least[way] < work < 8 * least[way]


@pytest.mark.parametrize("room", [1 << 31, 0], ids=["kept", "computed"])
def test_the_work_of_unions_is_that_of_a_loop_over_pairs(room, monkeypatch):
    monkeypatch.setattr(layer_sizes, "FEATURE_BYTES", room)
    layer, outputs = LAYER, 70
    n, p, chosen = layer.experts, layer.width, layer.tokens * layer.top_k
    feature = 2 * 2 * layer.hidden * p  # gate and up of one expert on one token
    counted = n * layer.tokens * feature if room else 0
    for _ in itertools.combinations(range(n), 2):
        tokens = 2 * chosen / n  # of the two
        counted += (0 if room else tokens * feature) + 2 * tokens * 6 * p**2
        pool = 2 * p
        counted += 2 * (outputs * pool**2 + 3 * pool**2 * p * 2)
    assert solve_work.unions_work(layer, outputs) == pytest.approx(counted)


def test_the_memory_of_unions_has_the_features_that_are_kept(monkeypatch):
    kept = layer_resources.unions_held(LAYER, quick=True).tensors
    monkeypatch.setattr(layer_sizes, "FEATURE_BYTES", 0)
    assert kept - layer_resources.unions_held(LAYER, quick=True).tensors == 4 * 8 * 25 * 1000  # N, I / 4, T
