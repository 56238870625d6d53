"""The same numbers on a GPU, to tolerances; skips itself where there is none."""

from dataclasses import replace

import problems
import pytest
import torch
from problems import merge

from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.devices import set_up_torch
from mergemoe.grouping.costs import Costs
from mergemoe.merging.solve import solve
from mergemoe.methods import mergemoe, routed, select
from mergemoe.models.layered_model import LayeredModel
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import down_of
from mergemoe.moe.tokens import Tokens
from mergemoe.reconstruction.options import LAYER
from mergemoe.reconstruction.refine import refine

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


class OnDevice(problems.Given):
    """Tokens given out on the device that is asked for, as a capture's reader does."""

    def chunks(self, heldout=False, device="cpu"):
        return [Tokens(*(part.to(device) for part in vars(c).values())) for c in super().chunks(heldout, device)]


@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
def test_the_batched_path_on_a_gpu_gives_the_cpus_numbers(biased):
    found = {}
    for device in ("cpu", "cuda"):
        drawn = problems.problem(
            expert_map=(0, 0, 1, 2, 1, 3, 2, 3), width=40, hidden_size=24, tokens=400, biased=biased
        )
        experts = drawn.experts.map(lambda matrices, device=device: matrices.to(device))
        local = replace(drawn, experts=experts, reader=OnDevice(drawn.reader.parts[False], drawn.reader.parts[True]))
        solved = [
            merge(mergemoe, local, ridge=1e-3),
            merge(routed, local, ridge=1e-2),
            merge(select, local, width=0.5, ridge=1e-2),
        ]
        downs = [down_of(result.expert).cpu() for results in solved for result in results]
        costs = Costs(local, 40).of_unions([((i,), (j,)) for j in range(8) for i in range(j)], 40)
        found[device] = [*downs, torch.tensor(costs, dtype=torch.float64)]
    for gpu, cpu in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_refine_on_a_gpu_repeats_its_bits_and_agrees_with_the_cpu(described, captured, dtype):
    how = {name: option.default for name, option in LAYER.items()} | {"steps": 30, "batch": 64, "rate": 0.1}
    found = {}
    for place, device in (("cpu", "cpu"), ("one", "cuda"), ("two", "cuda")):
        set_up_torch(1, device)
        with Reader(captured[1]) as reader:
            experts = read_experts(described, 1, device)
            solved, _ = solve(experts, [0, 1, 0, 2, 1, 0, 2, 0], [3] * 8, reader, SILU, method="mergemoe", ridge=1e-3)
            found[place] = refine(experts, solved, reader, SILU, **how | {"dtype": dtype})
    assert all(torch.equal(part, found["two"][0][name]) for name, part in found["one"][0].items())
    assert found["one"][1] == found["two"][1]
    cpu, gpu = (found[place][1]["output_error"]["heldout"] for place in ("cpu", "one"))
    assert gpu == pytest.approx(cpu, rel=0.02)


def test_a_capture_on_a_gpu_agrees_with_the_cpu(described, tokens, captured, tmp_path):
    device = torch.device("cuda")
    layered = LayeredModel(described["path"], torch.float32, device)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 80, device)
    files, _ = capture(layered, described, batches, tokens["heldout"], tmp_path, {"stage": "capture"})
    with Reader(files[1]) as found, Reader(captured[1]) as expected:
        for a, b in zip(found.chunks(), expected.chunks(), strict=True):
            torch.testing.assert_close(a.hidden, b.hidden, rtol=1e-3, atol=1e-3)
