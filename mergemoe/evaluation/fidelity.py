"""Measure the fidelity of a compressed model: its distance from the full model on held-out text.

The scores are perplexity, mean KL(full || compressed) per token in nats, the share of equal top-1 tokens, and for each
layer the relative squared error of the routed output on the full model's own inputs. Standard errors are over
sequences, because the tokens of one sequence are not independent. The full model's final hidden states are kept, and
logits are computed from them in chunks. If the model has an encoder, only the decoder's part of the text is scored
(models/stacks.py).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from mergemoe.calibration.open_layer import open_layer
from mergemoe.checkpoints.expert_weights import is_rerouted, read_expert_map, read_experts, read_router
from mergemoe.models.stacks import layer_stacks
from mergemoe.moe import router_rule
from mergemoe.moe.layout_types import Layout
from mergemoe.moe.problem import groups_of
from mergemoe.moe.solved import output_error
from mergemoe.progress import track


@torch.no_grad()
def language_scores(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    device: torch.device | str = "cpu",
    full_hidden: Tensor | None = None,
) -> dict[str, float]:
    """Return perplexity and, against `full_hidden`, KL and top-1 agreement, each with its standard error.

    Args:
        head: a function from final hidden states to logits.
        hidden: [S, L, H] final hidden states of the model that is measured.
        ids: [S, L] tokens.
        mask: [S, L], 1 on tokens.
        device: the head's device.
        full_hidden: [S, L, H] final hidden states of the full model.
    """
    per_sequence: dict[str, list[tuple[float, int]]] = {"nll": [], "kl": [], "top1": []}
    for row in track(range(len(ids)), "logits of sequences"):
        real = mask[row, 1:].bool()
        targets = ids[row, 1:][real].long().to(device)
        logp = head(hidden[row, :-1][real].to(device)).float().log_softmax(-1)
        count = len(targets)
        per_sequence["nll"].append((-logp.gather(1, targets[:, None]).double().sum().item(), count))
        if full_hidden is not None:
            full = head(full_hidden[row, :-1][real].to(device)).float().log_softmax(-1)
            per_sequence["kl"].append(((full.exp() * (full - logp)).double().sum().item(), count))
            per_sequence["top1"].append(((full.argmax(-1) == logp.argmax(-1)).double().sum().item(), count))
    nll, nll_error = _mean(per_sequence["nll"])
    scores = {"perplexity": math.exp(nll), "perplexity_stderr": math.exp(nll) * nll_error}
    for name in ("kl", "top1") if full_hidden is not None else ():
        scores[name], scores[f"{name}_stderr"] = _mean(per_sequence[name])
    return scores


class _Final(BaseModelOutput):
    """A decoder's output that has final hidden states; every other attribute is None."""

    def __getattr__(self, name: str) -> None:
        return None


def logits_function(model: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from final hidden states [n, H] to logits [n, V], with the model's own scales and caps."""
    decoder = layer_stacks(model)[-1].module

    def logits(hidden: Tensor) -> Tensor:
        known = _Final(last_hidden_state=hidden[None])
        places = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        read = {"input_ids": places}
        if model.config.is_encoder_decoder:
            read = {"encoder_outputs": known, "decoder_input_ids": places}
        decoder.forward = lambda *args, **kwargs: known
        try:
            return model(**read, use_cache=False).logits[0]
        finally:
            del decoder.forward

    return logits


def _mean(sums: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the mean per token and its standard error over sequences (a ratio estimate)."""
    tokens = sum(count for _, count in sums)
    mean = sum(total for total, _ in sums) / tokens
    residual = sum((total - mean * count) ** 2 for total, count in sums)
    units = len(sums)
    return mean, math.sqrt(residual * units / max(1, units - 1)) / tokens


def layer_errors(
    layout: Layout, folder: str | Path, reference: str | Path, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return {"layer_007": {"output_error": error}} of the compressed layers, on the full model's own inputs."""
    errors = {}
    for entry in layout["layers"]:
        layer, name = entry["layer"], f"layer_{entry['layer']:03d}"
        with open_layer(layout, layer, Path(reference, f"{name}.h5"), device, torch.float32) as opened:
            full = opened.experts
            compact = read_experts(layout, layer, device, folder).map(lambda matrices: matrices.float())
            pairs = zip(full.roles().values(), compact.roles().values(), strict=True)
            if all(torch.equal(old, new) for old, new in pairs):
                continue
            if is_rerouted(layout, layer, folder):
                changed, groups = router_rule.layer_router(entry, read_router(layout, layer, device, folder)), []
            else:
                changed, groups = None, groups_of(read_expert_map(layout, layer, folder), [0] * len(full))
            shares = opened.problem(groups, changed).shares
            error = output_error(full, compact, shares, opened.reader, opened.act, heldout=False)
        errors[name] = {"output_error": error or 0.0}
    return errors


def final_hidden_states(model: Any, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the final hidden states [S, L, H] of a loaded model."""
    final = []
    with torch.no_grad():
        for batch in track(batches, "fidelity: batches"):
            states: Any = None
            for stack in layer_stacks(model):
                states = stack.module(**stack.stack_inputs(batch, states), use_cache=False).last_hidden_state
            final.append(states.cpu())
    return torch.cat(final)
