"""Stock checkpoints of the demo in llama.cpp compute what transformers computes; compact ones are refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import ROOT
from transformers import AutoTokenizer

import mergemoe

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

LLAMA = ROOT / "scratch" / "serving" / "llama"
HERE = Path(__file__).parent
DEMO = ROOT / "data" / "demo-moe"
NEAR = 1e-4  # largest difference of a log-probability
STOCK = {
    "slim": {"method": "slim", "width": 0.5},
    "reap": {"method": "reap", "experts": 0.5},
    "folded": {"method": "joint", "routing": "folded", "features": "selected", "by": "selection"},
}


@pytest.fixture(scope="module")
def tokens():
    """Eight sequences of 128 tokens of the README."""
    text = AutoTokenizer.from_pretrained(DEMO)((ROOT / "README.md").read_text())["input_ids"]
    return torch.tensor(text[: 8 * 128]).view(8, 128)


def compressed(folder, tokens, **how):
    model = mergemoe.compress(mergemoe.load(DEMO, "cpu", torch.float32), tokens, **how)
    mergemoe.save(model, folder)
    return folder


def converted(folder, file):
    """Convert a checkpoint with llama.cpp's converter; return what it said."""
    command = [sys.executable, HERE / "gguf_convert.py", LLAMA / "source", folder, file]
    return subprocess.run(command, capture_output=True, text=True)


def scores(file, tokens):
    said = "".join(" ".join(map(str, row)) + "\n" for row in tokens.tolist())
    done = subprocess.run([LLAMA / "llama_scores", file], input=said, capture_output=True, text=True, check=True)
    return np.array([[float(score) for score in line.split()] for line in done.stdout.splitlines()])


@torch.no_grad()
def expected(folder, tokens):
    logits = mergemoe.load(folder, "cpu", torch.float32)(tokens).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, tokens[:, 1:, None])[..., 0].numpy()


@pytest.mark.parametrize("kind", ["full", *STOCK])
def test_llama_cpp_computes_what_transformers_computes(kind, tokens, tmp_path):
    folder = DEMO if kind == "full" else compressed(tmp_path / kind, tokens, **STOCK[kind])
    done = converted(folder, tmp_path / "model.gguf")
    assert done.returncode == 0, done.stderr[-3000:]
    found = scores(tmp_path / "model.gguf", tokens)
    assert found.shape == (8, 127)
    assert np.abs(found - expected(folder, tokens)).max() < NEAR


def test_a_compact_checkpoint_is_refused(tokens, tmp_path):
    done = converted(compressed(tmp_path / "select", tokens, method="select"), tmp_path / "model.gguf")
    assert done.returncode != 0 and "Model MergeMoeQwen3MoeForCausalLM is not supported" in done.stderr
