"""Fixtures: a tiny random model, its captured activations, and a copy of the project to run the workflow in."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import stages  # noqa: F401  # fixes MKL's code path, thread counts and offline mode before torch is imported

# isort: split
import pytest
import torch
import warm
from browsing import browser  # noqa: F401  # a fixture, one browser per test process
from filelock import FileLock
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from mergemoe import layout
from mergemoe.activations import Reader
from mergemoe.capture import batches_of, capture
from mergemoe.stream import LayeredModel

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = torch.tensor([0, 0, 1, 0, 0, 1])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where every test must run (MERGEMOE_NO_SKIP), turn a skip into a failure, but for want of a GPU."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("MERGEMOE_NO_SKIP") and "gpu" not in item.keywords:
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {call.excinfo.value}"


def make_tiny(folder: Path, **changes) -> Path:
    """Save a random qwen3_moe: 3 layers of which 2 hold 8 experts, with the demo's tokenizer."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 4096,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        "initializer_range": 0.2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**settings, **changes})).to(torch.bfloat16).save_pretrained(folder)
    for path in (ROOT / "data" / "demo-moe").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny checkpoint folder."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny-moe")


@pytest.fixture(scope="session")
def described(tiny) -> dict:
    """Its layout."""
    return layout.describe(tiny)


@pytest.fixture(scope="session")
def tokens() -> dict[str, torch.Tensor]:
    """Six sequences of 40 tokens, one of them padded."""
    ids = torch.randint(3, 4096, (6, 40), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    mask = torch.ones_like(ids, dtype=torch.uint8)
    mask[1, 30:] = 0
    return {"input_ids": ids, "attention_mask": mask, "heldout": HELDOUT}


@pytest.fixture(scope="session")
def captured(described, tokens, tmp_path_factory) -> dict[int, Path]:
    """Its activations on those tokens: {layer: file}."""
    scratch = tmp_path_factory.mktemp("scratch")
    layered = LayeredModel(described["path"], torch.float32, torch.device("cpu"))
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 80, torch.device("cpu"))
    return capture(layered, described, batches, tokens["heldout"], scratch, {"stage": "capture"})[0]


@pytest.fixture
def reader(captured):
    """The activations of layer 1."""
    with Reader(captured[1]) as opened:
        yield opened


def copy_project(folder: Path) -> Path:
    """Copy what a run of the workflow needs, with the tiny model and its params.yaml."""
    for name in ("mergemoe", "stages", "profiles", "data/blimp", "data/calibration", "data/heldout"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", folder / "Snakefile")
    shutil.copyfile(ROOT / "tests" / "tiny" / "params.yaml", folder / "params.yaml")
    make_tiny(folder / "tiny-moe")
    return folder


def snakemake(project: Path, *args: str, cores: int = 2, python: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run snakemake in a copy of the project and return what it said.

    It and its jobs are forks of one process (warm.py), unless `python` names a real interpreter.
    """
    python = python or warm.python()
    command = [python, "-m", "snakemake", "--cores", str(cores), *args]
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}", "HOME": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def planned(project: Path, *targets: str) -> dict[str, int]:
    """Return the jobs that a dry run counts, per rule."""
    done = snakemake(project, "--dry-run", *targets)
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in {"all", "total"}}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project whose workflow has run; tests copy it before they change anything.

    The first test process makes it, every other one copies it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    made = shared / "finished"
    with FileLock(shared / "finished.lock"):
        if not made.exists():
            project = copy_project(tmp_path_factory.mktemp("making") / "project")
            done = snakemake(project)
            assert done.returncode == 0, done.stderr
            project.rename(made)
    return shutil.copytree(made, own / "finished_copy")
