"""Measure the peak anonymous memory of the stages that read a whole checkpoint, and compare it with a limit.

python benchmarks/memory.py [--folder DIR] [--layers 2] [--dtype bfloat16]

The script writes a random qwen3_moe with layers as large as those of Qwen3-30B-A3B, runs the stages as the workflow
does, and reads RssAnon in /proc/PID/status every 20 ms. Mapped pages of the checkpoint's files do not count, because
the system frees them whenever it needs memory. The exit status is 1 if a peak is above its limit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import Qwen3MoeConfig  # noqa: E402
from transformers.core_model_loading import revert_weight_conversion  # noqa: E402

from mergemoe.artifacts import store  # noqa: E402
from mergemoe.checkpoints import model_folder  # noqa: E402
from mergemoe.checkpoints.expert_weights import read_experts  # noqa: E402
from mergemoe.checkpoints.shards import write_shards  # noqa: E402
from mergemoe.compressed import checkpoint_card  # noqa: E402
from mergemoe.models.layered_model import empty_model  # noqa: E402
from mergemoe.models.stacks import layer_stacks  # noqa: E402

MB = 1_000_000
VOCABULARY = 32000
ALLOWED = 600 * MB  # for imports, one batch, and everything else beside the weights
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}


def write_checkpoint(folder: Path, config: Any, shard_bytes: int = 500 * MB) -> None:
    """Write random weights in transformers' stored form, with at most one shard in memory."""
    config.save_pretrained(folder)
    write_shards(_random(empty_model(folder)), folder, shard_bytes)
    for path in Path(ROOT, "data", "demo-moe").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)


def _random(model: Any) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for key, like in revert_weight_conversion(model, model.state_dict()).items():
        if like.ndim == 1:  # norms
            yield key, torch.ones_like(like, device="cpu")
        else:
            yield key, torch.empty_like(like, device="cpu").normal_(0, 0.02, generator=generator)


def sizes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes of the checkpoint, and of its largest layer and its other parameters in the run's dtype."""
    model = empty_model(folder, dtype)
    prefixes = [f"{stack.prefix}{i}." for stack in layer_stacks(model) for i in range(len(stack.layers))]
    every = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    of_layer = {prefix: sum(b for name, b in every.items() if name.startswith(prefix)) for prefix in prefixes}
    return {
        "checkpoint": sum(entry["bytes"] for entry in model_folder.read_headers(folder).values()),
        "layer": max(of_layer.values()),
        "embeddings": sum(every.values()) - sum(of_layer.values()),
    }


def anonymous(pid: int) -> int:
    """Return the bytes of a process's anonymous memory (not mapped from a file); 0 if the process has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def peak(command: list[str], folder: Path) -> tuple[int, float]:
    """Run a command in a folder; return its peak anonymous memory in bytes and its seconds."""
    start, highest = time.monotonic(), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        reader.start()
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            time.sleep(0.02)
        reader.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(errors)}")
    return highest, time.monotonic() - start


def stage(name: str, cfg: Mapping[str, Any], **inputs: str | list[str]) -> list[str]:
    """Return the command line of a stage; the output has the stage's name."""
    command = [sys.executable, "-m", f"stages.{name}", "--cfg", json.dumps(cfg), "--code", "none", "--out", name]
    for option, paths in inputs.items():
        command += [f"--{option}", *([paths] if isinstance(paths, str) else paths)]
    return [*command, "--device", "cpu"]


def write_tokens(folder: Path, sequences: int, length: int) -> None:
    """Write random tokens for the stage capture, and the text for the stage reference."""
    ids = torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(0))
    tokens = {"input_ids": ids.int(), "attention_mask": torch.ones_like(ids).byte(), "heldout": torch.zeros(sequences)}
    store.write_tensors(folder / "tokens.safetensors", tokens, {"stage": "calibrate"})
    shutil.copyfile(ROOT / "data" / "heldout" / "mixed.jsonl.gz", folder / "heldout.jsonl.gz")


def write_solved(folder: Path) -> list[str]:
    """Write solved layers in which each pair of neighbours is one expert with the first one's weights."""
    layout, names = store.read_json(folder / "layout"), []
    for entry in layout["layers"]:
        numbers = torch.arange(entry["experts"] // 2)
        roles = read_experts(layout, entry["layer"])[slice(0, None, 2)].roles()
        tensors = {**roles, "groups": numbers, "expert_map": numbers.repeat_interleave(2)}
        names.append(f"layer_{entry['layer']:03d}.safetensors")
        store.write_tensors(folder / names[-1], tensors, {"stage": "solve"})
    return names


def measure(folder: Path, args: argparse.Namespace) -> bool:
    """Run the stages on a new checkpoint in a folder, print the figures; return whether all are within their limits."""
    model = folder / "model"
    write_checkpoint(model, Qwen3MoeConfig(**QWEN3_30B_A3B, num_hidden_layers=args.layers, vocab_size=VOCABULARY))
    write_tokens(folder, args.sequences, args.length)
    peak(stage("layout", {"path": str(model)}), folder)
    solved = write_solved(folder)

    size = sizes(model, getattr(torch, args.dtype))
    print(", ".join(f"{name} {size[name] / MB:,.0f} MB" for name in size), flush=True)
    streamed = size["layer"] + size["embeddings"] + ALLOWED
    shard = min(4 << 30, size["checkpoint"]) + ALLOWED
    run = {"dtype": args.dtype, "batch_tokens": args.sequences * args.length, "threads": 1}
    text = {"source": "heldout.jsonl.gz", "field": "text", "samples": args.sequences, "length": args.length}
    heldout = {"heldout": {**text, "seed": 0, "pack": True}}
    choices = {name: {"name": "memory", "path": str(model), "method": "none"} for name in checkpoint_card.STAGES}
    modeling = str(ROOT / "mergemoe/compressed/modeling.py")
    imports = "import stages.capture, stages.assemble, stages.reference"
    holds = True
    for name, limit, command in (
        ("imports", ALLOWED, [sys.executable, "-c", imports]),
        ("capture", streamed, stage("capture", run, layout="layout", tokens="tokens.safetensors")),
        ("reference", streamed, stage("reference", run | heldout, layout="layout", text="heldout.jsonl.gz")),
        ("assemble", shard, stage("assemble", choices, layout="layout", modeling=modeling, solved=solved)),
    ):
        highest, seconds = peak(command, folder)
        holds &= highest <= limit
        verdict = "holds" if highest <= limit else "DOES NOT HOLD"
        print(f"{name:9} {highest / MB:6,.0f} MB of {limit / MB:6,.0f} MB: {verdict} ({seconds:.0f} s)", flush=True)
    return holds


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="parent of the temporary folder, which takes twice the checkpoint's size")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--dtype", default="bfloat16", help="dtype of capture and reference; the checkpoint is bfloat16"
    )
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens per sequence")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        sys.exit(0 if measure(Path(temporary), args) else 1)


if __name__ == "__main__":
    main()
