"""Measure the time saved if a token's equal experts are computed once, in one merged layer with grouped_mm.

python benchmarks/deduplicate.py [--kept 64 32 16] [--tokens 1024] [--dtype bfloat16]

The layer has the size of a layer of Qwen3-30B-A3B (128 experts, 8 per token). Groups and choices are random. A real
router often chooses members of the same group, and then more time is saved.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import stages  # noqa: F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from mergemoe.compressed.modeling import shrink_experts

N, K, H, WIDTH = 128, 8, 2048, 768


def merged(kept: int, dtype: torch.dtype, device: str, deduplicate: bool) -> Qwen3MoeExperts:
    """Return an experts module with random weights, whose N experts are merged into `kept` random groups."""
    config = Qwen3MoeConfig(hidden_size=H, moe_intermediate_size=WIDTH, num_experts=N, num_experts_per_tok=K)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    facts = {
        "experts": [N, kept],
        "width": [WIDTH, WIDTH],
        "parameters": {"gate_up_proj": [kept, 2 * WIDTH, H], "down_proj": [kept, H, WIDTH]},
        "expert_map": {"expert_map": N},
    }
    shrink_experts(module, facts, deduplicate)
    module = module.to_empty(device=device).to(dtype)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    module.expert_map.copy_(torch.cat([torch.arange(kept), torch.randint(0, kept, (N - kept,))]))
    return module


@torch.no_grad()
def seconds(module: Qwen3MoeExperts, tokens: int, repeats: int) -> float:
    """Return the shortest time of a call in seconds."""
    like = next(module.parameters())
    x = torch.randn(tokens, H, dtype=like.dtype, device=like.device)
    index = torch.rand(tokens, N, device=like.device).topk(K).indices
    weight = torch.full((tokens, K), 1 / K, dtype=like.dtype, device=like.device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        module(x, index, weight)
        if like.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Print one row per number of kept experts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for kept in args.kept:
        plain, once = (
            seconds(merged(kept, getattr(torch, args.dtype), device, flag), args.tokens, args.repeats)
            for flag in (False, True)
        )
        print(f"{N} -> {kept:3}: {plain:.3f} s, once {once:.3f} s, {1 - once / plain:+.0%} saved", flush=True)


if __name__ == "__main__":
    main()
