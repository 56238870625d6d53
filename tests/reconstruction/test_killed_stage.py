"""A job with a descent that is killed, and started again by the same command."""

import json
import signal

import pytest
from stage_by_hand import StageByHand

from mergemoe.artifacts import store
from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.merging.solve import solve
from mergemoe.moe.expert_forward import Activation
from mergemoe.quantization.options import DESCENT
from mergemoe.reconstruction.options import LAYER

DIES = """\
import os, signal
from mergemoe.reconstruction import descent
from stages import {stage}
advance = descent.Descent._advance
descent.SAVE_EVERY = 0.0
def dying(self, batch):
    if self.step == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, batch)
descent.Descent._advance = dying
{stage}.main()
"""
STEPS = {"steps": 60, "batch": 64, "rate": 0.1}
CHOICES = {
    "refine": {"by": "layer", **{name: option.default for name, option in LAYER.items()}, **STEPS},
    "quantize": {
        "by": "descent",
        **{name: option.default for name, option in DESCENT.items()},
        **STEPS,
        "bits": 2,
        "group": 8,
    },
}


@pytest.mark.full
@pytest.mark.faults
@pytest.mark.parametrize("stage", CHOICES)
def test_a_killed_descent_goes_on_from_its_scratch_folder_and_removes_it(described, captured, reader, tmp_path, stage):
    layer, made = 1, {"stage": "test"}
    experts, expert_map = read_experts(described, layer), [0, 0, 1, 2, 2, 2, 3, 1]
    solved, _ = solve(experts, expert_map, [1] * 8, reader, Activation("silu"), method="mergemoe", ridge=0.0)
    store.write_json(tmp_path / "layout.json", described, made)
    store.write_tensors(tmp_path / "solved.safetensors", solved, made)
    (tmp_path / "dies.py").write_text(DIES.format(stage=stage))
    cfg = {"threads": 1, **CHOICES[stage]}
    inputs = {"layout": "layout.json", "solved": "solved.safetensors", "capture": captured[layer]}
    by_hand = StageByHand(tmp_path, layer, cfg, inputs)
    killed = by_hand.run("dies.py", out="one/layer.safetensors")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (scratch,) = (tmp_path / "scratch" / stage).iterdir()
    assert [path.name for path in scratch.iterdir()] == ["state.safetensors"]  # files of tokens have no name
    assert store.read_tensors(scratch / "state.safetensors")["steps"].tolist()[0] == 30
    done = by_hand.run("-m", f"stages.{stage}", out="one/layer.safetensors")
    assert done.returncode == 0, done.stderr
    assert not scratch.exists()
    whole = by_hand.run("-m", f"stages.{stage}", out="other/layer.safetensors")
    assert whole.returncode == 0, whole.stderr
    for name in ("layer.safetensors", "layer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    record = json.loads((tmp_path / "one/layer.json").read_text())
    assert record.get("best_step", 1) > 0
