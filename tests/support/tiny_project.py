"""The tiny random model, and copies of the project to run its workflow in."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import warm
from browsing import browser  # noqa: F401  # a fixture, one browser per test process
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import stages  # noqa: F401  # fixes MKL's code path, thread counts and offline mode before torch is imported
from mergemoe.artifacts import digests

ROOT = Path(__file__).resolve().parent.parent.parent


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


def copy_project(folder: Path) -> Path:
    """Copy what a run of the workflow needs, with the tiny model and its params.yaml."""
    for name in ("mergemoe", "stages", "profiles", "data/blimp", "data/calibration", "data/heldout"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "envs").mkdir()
    for name in ("Snakefile", "envs/conda.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "tests" / "tiny" / "params.yaml", folder / "params.yaml")
    make_tiny(folder / "tiny-moe")
    return folder


def snakemake(
    project: Path, *args: str, cores: int = 2, python: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run snakemake in a copy of the project and return what it said.

    It and its jobs are forks of one process (warm.py), unless `python` names a real interpreter. Options are
    those of subprocess.run.
    """
    python = python or warm.python()
    command = [python, "-m", "snakemake", "--cores", str(cores), *args]
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}", "HOME": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, **options)


def everything(project: Path) -> dict[str, str]:
    """Return {path: sha256} of all results, without hidden files."""
    files = (path for path in (project / "results").rglob("*") if path.is_file())
    shown = (path for path in files if not any(part.startswith(".") for part in path.relative_to(project).parts))
    return {str(path.relative_to(project)): digests.sha256(path) for path in shown}


def planned(project: Path, *targets: str) -> dict[str, int]:
    """Return the jobs that a dry run counts, per rule."""
    done = snakemake(project, "--dry-run", *targets)
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in {"all", "total"}}
