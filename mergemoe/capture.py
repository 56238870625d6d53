"""One streamed pass of the model over the calibration tokens: what every experts module is called with.

The hooks sit on the experts module, behind all routing rules, and on its router. Finished layers and the
residual stream live in a scratch folder until the pass is done, so that a killed capture goes on after its
last finished layer.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergemoe import activations, store
from mergemoe.errors import UserError
from mergemoe.progress import Progress
from mergemoe.stream import Batch, LayeredModel, loaded_layers, prepare, run_layer


def batches_of(ids: Tensor, mask: Tensor, batch_tokens: int, device: torch.device) -> list[Batch]:
    """Cut sequences [S, L] into batches of about `batch_tokens` tokens, one sequence at least."""
    size = max(1, batch_tokens // ids.shape[1])
    return [
        {"input_ids": i.long().to(device), "attention_mask": m.long().to(device)}
        for i, m in zip(ids.split(size), mask.split(size), strict=True)
    ]


@torch.no_grad()
def capture(
    layered: LayeredModel,
    layout: Mapping[str, Any],
    batches: list[Batch],
    heldout: Tensor,
    scratch: Path,
    provenance: Mapping[str, Any],
) -> tuple[dict[int, Path], list[Tensor]]:
    """Run the decoder's layers once over the batches.

    Args:
        layered: the model.
        layout: what layout.describe returned for it.
        batches: input_ids and attention_mask [B, L] each.
        heldout: [S] which sequences are never fitted on, written into every file.
        scratch: a folder that belongs to exactly these inputs and parameters; the pass goes on from what it holds.
        provenance: written into every file.

    Returns:
        {MoE layer: its finished file in `scratch`}, and the last layer's hidden states per batch.

    Raises:
        UserError: where hidden states are not finite, with the layer.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    modules = {entry["layer"]: entry for entry in layout["layers"]}
    hidden, arguments = prepare(layered, batches)
    first = 0
    for saved in sorted(scratch.glob("residual_*.safetensors")):
        done = int(saved.stem.removeprefix("residual_"))
        if not all((scratch / f"layer_{i:03d}.h5").is_file() for i in modules if i <= done):
            continue
        first = done + 1
        stream = load_file(saved)
        hidden = [stream[f"{b:06d}"].to(layered.device) for b in range(len(batches))]
        print(f"capture goes on after decoder layer {first - 1}, found in {scratch}", file=sys.stderr)

    progress = Progress("batches through decoder layers", (layout["decoder_layers"] - first) * len(batches))
    for i, layer in loaded_layers(layered, first):
        recorder = _Recorder(layered.model, modules[i]) if i in modules else None
        path = scratch / f"layer_{i:03d}.h5" if recorder else None
        with _layer_file(path, heldout, {**provenance, "layer": i}) as file:
            sequence = 0
            for b, batch in enumerate(batches):
                hidden[b] = run_layer(layer, hidden[b], arguments[b][i])
                _check_finite(hidden[b], i, layered.dtype)
                if recorder and file:
                    file.append(**recorder.rows(batch["attention_mask"], sequence))
                sequence += len(batch["input_ids"])
                progress.step()
        if recorder:
            recorder.remove()
        with store.atomic(scratch / f"residual_{i:03d}.safetensors") as temporary:
            save_file({f"{b:06d}": h.cpu().contiguous() for b, h in enumerate(hidden)}, temporary)
        (scratch / f"residual_{i - 1:03d}.safetensors").unlink(missing_ok=True)
    return {i: scratch / f"layer_{i:03d}.h5" for i in modules}, hidden


class _Recorder:
    """Hooks on one layer's router and experts; `rows` gives what the last batch called them with."""

    def __init__(self, model: Any, entry: Mapping[str, Any]):
        experts = model.get_submodule(entry["module"])
        router = model.get_submodule(entry["router"]["module"])
        self.handles = [
            experts.register_forward_pre_hook(lambda _, args: setattr(self, "call", args)),
            router.register_forward_hook(lambda _, args, output: setattr(self, "logits", output[0])),
        ]
        self.call: tuple[Tensor, Tensor, Tensor] | None = None
        self.logits: Tensor | None = None

    def rows(self, mask: Tensor, sequence: int) -> dict[str, Tensor]:
        """Return the rows of real tokens; `sequence` is the number of the batch's first sequence."""
        assert self.call is not None and self.logits is not None
        hidden, index, weight = self.call
        keep = mask.flatten().bool()
        numbers = torch.arange(sequence, sequence + len(mask), dtype=torch.int32)
        return {
            "hidden": hidden.reshape(-1, hidden.shape[-1])[keep],
            "expert_index": index[keep].to(torch.int16),
            "expert_weight": weight[keep],
            "router_logits": self.logits.reshape(-1, self.logits.shape[-1])[keep],
            "sequence": numbers.repeat_interleave(mask.shape[1])[keep.cpu()],
        }

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


@contextmanager
def _layer_file(path: Path | None, heldout: Tensor, provenance: Mapping[str, Any]) -> Iterator[Any]:
    if path is None:
        yield None
        return
    with store.atomic(path) as temporary:
        writer = activations.Writer(temporary, heldout)
        yield writer
        writer.close(provenance)


def _check_finite(hidden: Tensor, layer: int, dtype: torch.dtype) -> None:
    if not hidden.isfinite().all():
        raise UserError(
            f"decoder layer {layer}: {int((~hidden.isfinite()).sum())} of {hidden.numel()} hidden values are NaN or "
            f"infinite in {str(dtype).removeprefix('torch.')}. float16 overflows in many models: set `capture.dtype` "
            "to bfloat16 or float32; if it is one of these, the checkpoint itself is damaged"
        )
