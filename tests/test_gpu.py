"""The same numbers on a GPU, to tolerances; skips itself where there is none."""

import pytest
import torch

from mergemoe.activations import Reader
from mergemoe.capture import batches_of, capture
from mergemoe.features import Activation
from mergemoe.solve import solve
from mergemoe.stream import LayeredModel
from mergemoe.weights import read_experts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SILU = Activation("silu")


def test_a_solve_on_a_gpu_agrees_with_the_cpu(described, captured):
    found = {}
    for device in ("cpu", "cuda"):
        with Reader(captured[1]) as reader:
            experts = read_experts(described, 1, device)
            tensors, _ = solve(experts, [0, 1, 0, 2, 1, 0, 2, 0], [3] * 8, reader, SILU, method="mergemoe", ridge=1e-3)
        found[device] = tensors
    for role in ("gate", "up", "down"):
        torch.testing.assert_close(found["cuda"][role].float(), found["cpu"][role].float(), rtol=1e-2, atol=1e-3)


def test_a_capture_on_a_gpu_agrees_with_the_cpu(described, tokens, captured, tmp_path):
    device = torch.device("cuda")
    layered = LayeredModel(described["path"], torch.float32, device)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 80, device)
    files, _ = capture(layered, described, batches, tokens["heldout"], tmp_path, {"stage": "capture"})
    with Reader(files[1]) as found, Reader(captured[1]) as expected:
        for a, b in zip(found.chunks(), expected.chunks(), strict=True):
            torch.testing.assert_close(a.hidden, b.hidden, rtol=1e-3, atol=1e-3)
