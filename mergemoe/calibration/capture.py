"""Capture: one pass of the model, layer by layer, records the inputs of every experts module.

The hooks sit on the experts module, behind all routing rules, and on its router. Finished layers and the residual
stream stay in a scratch folder until the pass ends, so that a killed capture continues after its last finished layer.
"""

import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergemoe.artifacts import atomic, store
from mergemoe.calibration import activation_file
from mergemoe.calibration.hooks import Recorder
from mergemoe.errors import ArtifactError, UserError
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layerwise_forward import LayerwiseForward, run_layer
from mergemoe.models.stacks import Batch, layer_stacks
from mergemoe.moe.layout_types import ModelLayout
from mergemoe.progress import Progress


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
    layout: ModelLayout,
    batches: list[Batch],
    heldout: Tensor,
    scratch: Path,
    provenance: Mapping[str, Any],
) -> tuple[dict[int, Path], list[Tensor]]:
    """Run the model's layers once over the batches.

    Args:
        layered: the model.
        layout: its layout.
        batches: input_ids and attention_mask [B, L] each.
        heldout: [S] which sequences are never fitted on, written into every file.
        scratch: a folder that belongs to exactly these inputs and parameters; a killed pass continues from it.
        provenance: written into every file.

    Returns:
        {MoE layer: its finished file in `scratch`}, and the last layer's hidden states per batch.

    Raises:
        UserError: if hidden states are not finite, with the layer.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    modules = {entry["layer"]: entry for entry in layout["layers"]}
    ends = {stack.first - 1 for stack in layer_stacks(layered.model)}  # the next stack is prepared from these
    residuals = _saved(scratch, list(modules), ends, provenance)
    first = 1 + max(residuals, default=-1)
    if first:
        print(f"capture continues after layer {first - 1}, found in {scratch}", file=sys.stderr)

    def restore(done: int) -> list[Tensor]:
        saved = residuals.pop(done)
        handed = [saved.get(f"{b:06d}.handed") for b in range(len(batches))]
        forward.states = deque(s if s is None else s.to(layered.device) for s in handed)
        return [saved[f"{b:06d}"].to(layered.device) for b in range(len(batches))]

    forward = LayerwiseForward(layered, batches)
    progress = Progress("batches through layers", (layout["decoder_layers"] - first) * len(batches))
    for i, layer in forward.layers(first, restore):
        recorder = Recorder(layered.model, modules[i]) if i in modules else None
        path = scratch / f"layer_{i:03d}.h5" if recorder else None
        with _layer_file(path, heldout, {**provenance, "layer": i}) as file:
            for rows in run_batches(layer, i, forward, recorder):
                if file:
                    file.append(**rows)
                progress.step()
        if recorder:
            recorder.remove()
        store.write_state(_residual_path(scratch, i), _residual(forward))
        if i - 2 not in ends:  # the one before this stays: another copy of this job may be about to go on from it
            _residual_path(scratch, i - 2).unlink(missing_ok=True)
    return {i: scratch / f"layer_{i:03d}.h5" for i in modules}, forward.hidden


def run_batches(
    layer: Any, number: int, forward: LayerwiseForward, recorder: Recorder | None
) -> Iterator[dict[str, Tensor]]:
    """Run one layer over all batches; yield the calls of its experts.

    Raises:
        UserError: if hidden states are not finite.
    """
    sequence = 0
    for b, batch in enumerate(forward.inputs):
        forward.hidden[b] = run_layer(layer, forward.hidden[b], forward.arguments[b][number])
        _check_finite(forward.hidden[b], number)
        yield recorder.rows(batch["attention_mask"], sequence) if recorder else {}
        sequence += len(batch["input_ids"])


def _saved(
    scratch: Path, modules: Collection[int], ends: Collection[int], provenance: Mapping[str, Any]
) -> dict[int, dict[str, Tensor]]:
    """Return {layer: the residual stream after it}: of the last layer to go on after, and of the ends before it.

    What a killed pass left may be damaged: the last layer counts up to which all files are whole.
    """
    saved = [path.stem.removeprefix("residual_") for path in scratch.glob("residual_*.safetensors")]
    for done in sorted((int(number) for number in saved if number.isdecimal()), reverse=True):
        try:
            for i in modules:
                if i <= done:
                    _check_layer(scratch / f"layer_{i:03d}.h5", i, provenance)
            needed = {done, *(end for end in ends if 0 <= end < done)}
            return {i: store.read_state(_residual_path(scratch, i)) for i in needed}
        except ArtifactError as error:
            print(f"capture does not continue after layer {done}: {error}", file=sys.stderr)
    return {}


def _check_layer(path: Path, layer: int, provenance: Mapping[str, Any]) -> None:
    with activation_file.Reader(path, layer) as file:
        if any(file.provenance.get(key) != value for key, value in provenance.items()):
            raise ArtifactError(f"{path} was made by another job")


def _residual_path(scratch: Path, layer: int) -> Path:
    return scratch / f"residual_{layer:03d}.safetensors"


def _residual(forward: LayerwiseForward) -> dict[str, Tensor]:
    """Return the next layer's inputs. This is a function so that nothing holds these tensors while it runs."""
    residual = {f"{b:06d}": h for b, h in enumerate(forward.hidden)}
    residual |= {f"{b:06d}.handed": s for b, s in enumerate(forward.states) if s is not None}
    return {key: tensor.cpu().contiguous() for key, tensor in residual.items()}


@contextmanager
def _layer_file(path: Path | None, heldout: Tensor, provenance: Mapping[str, Any]) -> Iterator[Any]:
    if path is None:
        yield None
        return
    with atomic.atomic(path) as temporary:
        writer = activation_file.Writer(temporary, heldout)
        try:
            yield writer
            writer.close(provenance)
        finally:
            writer.discard()


def _check_finite(hidden: Tensor, layer: int) -> None:
    if not hidden.isfinite().all():
        raise UserError(
            f"layer {layer}: {int((~hidden.isfinite()).sum())} of {hidden.numel()} hidden values are NaN or "
            f"infinite in {str(hidden.dtype).removeprefix('torch.')}. float16 overflows in many models: set "
            "`capture.dtype` to bfloat16 or float32. If it is one of these, the checkpoint itself is damaged"
        )
