"""Train data/demo-moe, the Mixture-of-Experts model that the demo compresses, or a second model for trying methods.

    python data/train_demo.py --text DIR [--family qwen3_moe] [--steps 2600] [--out data/demo-moe]
    python data/train_demo.py --text DIR --steps 600 --schedule constant --checkpoints 7 --out data/constant-moe

The demo model is a qwen3_moe of 6 million parameters with 16 experts per layer, of which 4 work on a token. The second
is a qwen2_moe with 24 experts, of which 4 work on a token beside a shared one; its routing weights are not normalized.
The second line keeps checkpoints of a run whose learning rate does not fall, for an `average` of them.
Each has its own byte-level BPE tokenizer. Both are trained on seven domains of text, so that their experts specialize.
The run is seeded: its bits repeat on one machine with one thread count. data/README.md lists the commands, times and
scores.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from passages import DOMAINS, read_passages
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
LENGTH = 256
# {domain: its share of the training rows}. Simple prose has the largest share, because it teaches BLiMP's grammar.
WEIGHTS = dict(books=0.18, code=0.14, math=0.12, speeches=0.08, stories=0.22, tinystories=0.10, wiki=0.16)
# The settings in which the two models differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": dict(head_dim=32, num_experts=16, moe_intermediate_size=128, norm_topk_prob=True),
    "qwen2_moe": dict(
        num_experts=24, moe_intermediate_size=96, shared_expert_intermediate_size=192, norm_topk_prob=False
    ),
}


def train_tokenizer(passages: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; its one special token begins and ends every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=2 * LENGTH
    )


def rows_of(tokenizer: PreTrainedTokenizerFast, passages: list[str]) -> Tensor:
    """Return the passages as rows [n, LENGTH + 1] of token ids; each passage begins with the end token."""
    encoded = tokenizer(passages, add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (tokenizer.eos_token_id, *ids)])
    return stream[: len(stream) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)


def batches(rows: dict[str, Tensor], size: int, generator: torch.Generator):
    """Yield batches [size, LENGTH + 1] without end: domains by WEIGHTS, each row of a domain once per epoch."""
    order = {domain: torch.randperm(len(r), generator=generator).tolist() for domain, r in rows.items()}
    weights = torch.tensor([WEIGHTS[domain] for domain in DOMAINS])
    while True:
        batch = []
        for k in torch.multinomial(weights, size, replacement=True, generator=generator).tolist():
            domain = DOMAINS[k]
            if not order[domain]:
                order[domain] = torch.randperm(len(rows[domain]), generator=generator).tolist()
            batch.append(rows[domain][order[domain].pop()])
        yield torch.stack(batch)


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: Tensor) -> float:
    """Return exp of the mean negative log-likelihood per token."""
    model.eval()
    total = 0.0
    for batch in rows.split(16):
        logits = model(batch[:, :-1]).logits.float().flatten(0, 1)
        total += torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return math.exp(total / rows[:, 1:].numel())


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Any:
    """Save a bfloat16 copy for transformers and return it."""
    saved: Any = copy.deepcopy(model)
    saved = saved.to(torch.bfloat16)
    saved.config.output_router_logits = False
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return saved


def main() -> None:
    """Read the text, train tokenizer and model, report the held-out perplexities, save in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of <domain>.txt.gz files")
    parser.add_argument("--family", choices=FAMILIES, default="qwen3_moe")
    parser.add_argument("--out", type=Path, default=Path("data/demo-moe"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=16, help="rows of 256 tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--schedule", choices=["linear", "constant"], default="linear", help="after the warm-up")
    parser.add_argument("--checkpoints", type=int, default=0, help="kept of the last half, as OUT/step-NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--autocast", choices=["bfloat16", "none"], default="bfloat16", help="none if the CPU has no bfloat16 units"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    train = {domain: read_passages(args.text, domain, "train") for domain in DOMAINS}
    # A tenth of the passages is enough for 4,096 tokens, and keeps each domain's share of the text.
    tokenizer = train_tokenizer([passage for p in train.values() for passage in p[::10]], vocab_size=4096)
    rows = {domain: rows_of(tokenizer, passages) for domain, passages in train.items()}
    heldout = {d: rows_of(tokenizer, read_passages(args.text, d, "heldout"))[:64] for d in DOMAINS}
    print({domain: r.numel() for domain, r in rows.items()}, "training tokens", flush=True)

    config: Any = AutoConfig.for_model(
        args.family,
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=512,
        num_experts_per_tok=4,
        tie_word_embeddings=True,
        max_position_embeddings=2 * LENGTH,
        router_aux_loss_coef=0.01,
        output_router_logits=True,  # adds the load-balancing loss; switched off in the saved configuration
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **FAMILIES[args.family],
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    model.set_experts_implementation("eager")  # several times as fast as grouped_mm on a CPU
    print(f"{model.num_parameters():,} parameters", flush=True)

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    warmup = max(1, args.steps // 25)
    falling = args.schedule == "linear"
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (args.steps - step) / (args.steps - warmup) if falling else 1.0),
    )
    kept = {args.steps - i * args.steps // (2 * args.checkpoints) for i in range(args.checkpoints)}

    start = time.monotonic()
    draw = batches(rows, args.batch, torch.Generator().manual_seed(args.seed))
    for step in range(args.steps):
        batch = next(draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.autocast == "bfloat16"):
            output = model(batch[:, :-1])
        logits = output.logits.float().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
        (loss + config.router_aux_loss_coef * output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 50 == 0 or step == args.steps - 1:
            seconds = time.monotonic() - start
            print(
                f"step {step} loss {loss.item():.3f} balance {output.aux_loss.item():.3f} {seconds:.0f} s", flush=True
            )
        if step + 1 in kept:
            save(model, tokenizer, args.out / f"step-{step + 1:05d}")
        if step % 500 == 499:
            save(model, tokenizer, args.out)  # so that the model can be tried during training

    saved = save(model, tokenizer, args.out).float()  # report the perplexities of the saved copy
    report = {domain: round(perplexity(saved, r), 2) for domain, r in heldout.items()}
    print(json.dumps({"seconds": round(time.monotonic() - start), "heldout_perplexity": report}), flush=True)


if __name__ == "__main__":
    main()
