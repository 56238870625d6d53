"""Layer stacks of a model: one decoder, or an encoder followed by a decoder.

Layers are numbered over all stacks, the encoder's first. An encoder-decoder model is used as a prefix language model:
the encoder reads the first half of each sequence, and the decoder predicts the second half.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mergemoe.errors import UserError

Batch = dict[str, Tensor]

# Layer classes that hand the next layer a state beside the hidden states: {class: the argument that takes it}.
_HANDED_ON = {
    "Glm5NextTextDecoderLayer": "prev_topk_indices",
    "GlmMoeDsaDecoderLayer": "prev_topk_indices",
    "HYV4DecoderLayer": "prev_topk_indices",
    "MistralLarge4TextDecoderLayer": "prev_topk_indices",
    "ZayaDecoderLayer": "prev_router_hidden_states",
}


@dataclass(frozen=True)
class Stack:
    """Layers that run one after the other. This class is for a decoder without an encoder.

    model: the whole model.
    module: the decoder or encoder: it computes the first layer's inputs, and its output from the last layer's.
    layers: the layers.
    prefix: the beginning of the names of the layers' parameters; the layer's number follows.
    first: the number of the first layer.
    """

    model: Any
    module: Any
    layers: Any
    prefix: str
    first: int = 0

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return the module's inputs for a batch of whole sequences.

        Args:
            batch: input_ids and attention_mask [B, L].
            before: the output of the stack before this one, for the same batch.
        """
        return batch

    def is_needed_before_layers(self, name: str) -> bool:
        """Return whether a parameter inside the layers is needed to compute the layers' arguments."""
        return False

    def state_for_next_layer(self, hidden: Tensor, arguments: tuple[Any, ...]) -> Any:
        """Return the state that a layer with these inputs and arguments hands on beside its output, or None."""
        return None

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        """Return a layer's output hidden states in the form that the module expects from a layer."""
        return output

    @contextmanager
    def hand_on_states(self, layer: Any, states: deque[Any]) -> Iterator[None]:
        """While the layer runs, replace each batch's state in `states` by the layer's own; here there are none."""
        yield


class Relay(Stack):
    """A decoder whose layers hand on a state beside the hidden states, such as the tokens that an indexer picked."""

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        """Return the pair of output and state."""
        return output, shared

    @contextmanager
    def hand_on_states(self, layer: Any, states: deque[Any]) -> Iterator[None]:
        """Pass the state to the layer as the argument `_HANDED_ON` names, and take the new state from its output."""
        name = _HANDED_ON[type(layer).__name__]
        taking = layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args[:1], {**kwargs, name: states.popleft()}), with_kwargs=True
        )
        leaving = layer.register_forward_hook(lambda _, args, output: states.append(output[1]))
        try:
            yield
        finally:
            taking.remove()
            leaving.remove()


class _OfTwo(Stack):
    """A stack of T5's kind: the first layer computes the position biases [1, heads, L, L] for all layers."""

    def is_needed_before_layers(self, name: str) -> bool:
        return name.endswith(".relative_attention_bias.weight")

    def state_for_next_layer(self, hidden: Tensor, arguments: tuple[Any, ...]) -> Any:
        length, biases = hidden.shape[1], arguments[1]
        return self.layers[0].layer[0].SelfAttention.compute_bias(length, length) if biases is None else biases

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        return output, shared, None  # cross-attention has no biases: every layer creates its own zeros


class Encoder(_OfTwo):
    """The encoder of an encoder-decoder model. It reads the first half of each sequence."""

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return the first halves of the sequences."""
        return {name: rows[:, : rows.shape[1] // 2] for name, rows in batch.items()}


class Decoder(_OfTwo):
    """The decoder of an encoder-decoder model. It reads the second halves and the encoder's output."""

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return the second halves after a start token, so that position j predicts token j of the half."""
        half = {name: rows[:, rows.shape[1] // 2 :] for name, rows in batch.items()}
        half["input_ids"] = self.model._shift_right(half["input_ids"])
        if before is None:
            return half
        read = batch["attention_mask"][:, : before.shape[1]]
        return half | {"encoder_hidden_states": before, "encoder_attention_mask": read}


def layer_stacks(model: Any) -> list[Stack]:
    """Return the stacks of a model in the order in which they run."""
    decoder = model.get_decoder()
    if hasattr(decoder, "lm_head"):  # llama4's get_decoder returns the model around its decoder
        decoder = decoder.model
    if not model.config.is_encoder_decoder:
        layers, prefix = _layers(model, decoder)
        kind = Relay if type(layers[0]).__name__ in _HANDED_ON else Stack
        return [kind(model, decoder, layers, prefix)]
    first = Encoder(model, model.get_encoder(), *_layers(model, model.get_encoder()))
    return [first, Decoder(model, decoder, *_layers(model, decoder), first=len(first.layers))]


def _layers(model: Any, module: Any) -> tuple[Any, str]:
    layers = next((getattr(module, name) for name in ("layers", "blocks", "block") if hasattr(module, name)), None)
    for name, part in model.named_modules():
        if layers is not None and part is layers:
            return layers, f"{name}."
    raise UserError(
        f"{type(model).__name__} keeps no layers under a name that this version knows, such as `layers`. It is no "
        "Mixture-of-Experts model that works here (docs/models.md), or config.json says wrongly whether it has an "
        "encoder (`is_encoder_decoder`)"
    )
