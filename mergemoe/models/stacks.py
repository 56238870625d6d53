"""The stacks of layers that a model is: a decoder, or an encoder and the decoder that reads what the encoder made.

Layers are numbered over all stacks, the encoder's first. A model of two stacks is taken as a prefix language
model: of every sequence the encoder reads the first half, and the decoder is made to continue with the second.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Batch = dict[str, Tensor]

# Layers that hand the next one a state beside the hidden states, and the name under which it takes that.
_HANDED_ON = {
    "Glm5NextTextDecoderLayer": "prev_topk_indices",
    "GlmMoeDsaDecoderLayer": "prev_topk_indices",
    "HYV4DecoderLayer": "prev_topk_indices",
    "MistralLarge4TextDecoderLayer": "prev_topk_indices",
    "ZayaDecoderLayer": "prev_router_hidden_states",
}


@dataclass(frozen=True)
class Stack:
    """Layers that run one after the other; here those of a decoder that stands alone.

    module: makes the first layer's inputs, and of the last one's output its own.
    prefix: of the names of the layers' parameters, each layer's number following.
    first: the number of the first layer.
    """

    model: Any
    module: Any
    layers: Any
    prefix: str
    first: int = 0

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return what the module reads of a batch of whole sequences.

        Args:
            batch: input_ids and attention_mask [B, L].
            before: what the stack before this one made of the same batch.
        """
        return batch

    def is_needed_before_layers(self, name: str) -> bool:
        """Return whether a parameter of the layers is needed for what they are called with already."""
        return False

    def state_for_next_layer(self, hidden: Tensor, arguments: tuple[Any, ...]) -> Any:
        """Return what a layer called with these inputs and other arguments hands on beside its output."""
        return None

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        """Return a layer's output as the module expects it."""
        return output

    @contextmanager
    def hand_on_states(self, layer: Any, states: deque[Any]) -> Iterator[None]:
        """Let a layer take what the one before it handed on, batch by batch, and leave its own there instead."""
        yield


class Relay(Stack):
    """A decoder whose layers hand on a state of their own, as the tokens that an indexer picked."""

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        """Return the output and the state."""
        return output, shared

    @contextmanager
    def hand_on_states(self, layer: Any, states: deque[Any]) -> Iterator[None]:
        """Put the state under its name among a layer's arguments, and take the new one from its output."""
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
    """As T5's: the first layer makes the position biases [1, heads, L, L], which the others are handed."""

    def is_needed_before_layers(self, name: str) -> bool:
        return name.endswith(".relative_attention_bias.weight")

    def state_for_next_layer(self, hidden: Tensor, arguments: tuple[Any, ...]) -> Any:
        length, biases = hidden.shape[1], arguments[1]
        return self.layers[0].layer[0].SelfAttention.compute_bias(length, length) if biases is None else biases

    def as_layer_output(self, output: Tensor, shared: Any = None) -> Any:
        return output, shared, None  # cross-attention has no biases: every layer makes its own zeros


class Encoder(_OfTwo):
    """Reads the first halves."""

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return the first halves."""
        return {name: rows[:, : rows.shape[1] // 2] for name, rows in batch.items()}


class Decoder(_OfTwo):
    """Reads the second halves, and what the encoder made of the first."""

    def stack_inputs(self, batch: Batch, before: Tensor | None = None) -> Batch:
        """Return the second halves behind a start token, so that place j is to tell token j of its half."""
        half = {name: rows[:, rows.shape[1] // 2 :] for name, rows in batch.items()}
        half["input_ids"] = self.model._shift_right(half["input_ids"])
        if before is None:
            return half
        read = batch["attention_mask"][:, : before.shape[1]]
        return half | {"encoder_hidden_states": before, "encoder_attention_mask": read}


def layer_stacks(model: Any) -> list[Stack]:
    """Return the stacks of a model, in the order in which they run."""
    decoder = model.get_decoder()
    if hasattr(decoder, "lm_head"):  # llama4 answers with the model around its decoder
        decoder = decoder.model
    if not model.config.is_encoder_decoder:
        layers, prefix = _layers(model, decoder)
        kind = Relay if type(layers[0]).__name__ in _HANDED_ON else Stack
        return [kind(model, decoder, layers, prefix)]
    first = Encoder(model, model.get_encoder(), *_layers(model, model.get_encoder()))
    return [first, Decoder(model, decoder, *_layers(model, decoder), first=len(first.layers))]


def _layers(model: Any, module: Any) -> tuple[Any, str]:
    layers = next(getattr(module, name) for name in ("layers", "blocks", "block") if hasattr(module, name))
    return layers, next(name for name, part in model.named_modules() if part is layers) + "."
