"""A streamed pass holds one layer at a time: its anonymous memory, sampled in a process of its own."""

import multiprocessing

import torch
from memory_growth import memory_growth
from transformers import Qwen3MoeConfig

from benchmarks.memory import MB, sizes, write_checkpoint
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.models import layout
from mergemoe.models.layered_model import LayeredModel

WIDTHS = {"num_hidden_layers": 12, "hidden_size": 512, "moe_intermediate_size": 96, "num_experts": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts_per_tok": 2}


def run(folder, scratch):
    """Capture in float32 what the checkpoint holds in bfloat16, so that every weight takes anonymous memory."""
    layered = LayeredModel(folder, torch.float32, torch.device("cpu"))
    ids = torch.arange(3, 67).view(2, 32)
    batches = batches_of(ids, torch.ones_like(ids), 32, layered.device)
    capture(
        layered, layout.describe_layout(folder, digests=False), batches, torch.zeros(2), scratch, {"stage": "capture"}
    )


def growth(tiny, folder, scratch, answer):
    """Send how far a pass's memory rose; a tiny pass before it has imported and started all that it needs."""
    torch.set_num_threads(1)
    run(tiny, scratch / "tiny")
    answer.send(memory_growth(lambda: run(folder, scratch / "measured")))


def test_a_streamed_pass_takes_the_memory_of_one_layer_and_the_embeddings(tiny, tmp_path):
    folder = tmp_path / "model"
    write_checkpoint(folder, Qwen3MoeConfig(**WIDTHS, **HEADS, vocab_size=4096, dtype="bfloat16"), 50 * MB)
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=growth, args=(tiny, folder, tmp_path, its))
    process.start()
    its.close()
    grown = mine.recv()
    process.join()
    size = sizes(folder, torch.float32)
    assert size["layer"] < grown < 2 * size["layer"] + size["embeddings"] + 10 * MB
