"""Run batches through a model layer by layer, one layer's weights in memory at a time.

Each stack takes three steps. First, embeddings, final norm and head are loaded. Second, a dry pass of the stock module,
whose layers only record their arguments, makes masks, positions and rotary embeddings for every batch; this works for
any architecture. Third, the layers run one by one over all batches. The result equals the ordinary forward bit for bit
(tests).
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mergemoe.errors import UserError
from mergemoe.models.layered_model import LayeredModel, ResidentModel
from mergemoe.models.stacks import Batch, Stack, layer_stacks


class LayerwiseForward:
    """A forward pass of all batches, one layer at a time.

    batches: whole sequences, input_ids and attention_mask [B, L] each.
    inputs: per batch, the inputs of the current stack.
    hidden: per batch, the input hidden states [B, L', H] of the next layer.
    arguments: per batch, {layer number: the other arguments of that layer}.
    states: per batch, the state that the last layer hands to the next one beside `hidden`, or None.
    """

    def __init__(self, layered: LayeredModel | ResidentModel, batches: list[Batch]):
        self.layered, self.batches = layered, batches
        self.inputs: list[Batch] = []
        self.hidden: list[Tensor] = []
        self.arguments: list[dict[int, tuple[Any, Any]]] = []
        self.states: deque[Any] = deque()

    def layers(
        self, first: int = 0, restore: Callable[[int], list[Tensor]] | None = None
    ) -> Iterator[tuple[int, nn.Module]]:
        """Yield (number, layer) with the layer's weights loaded; the body of the loop must update `hidden`.

        Args:
            first: the number of the first layer to run.
            restore: a function that takes a layer's number, returns its outputs `hidden` and sets `states`.
        """
        before: list[Any] = [None] * len(self.batches)
        every = layer_stacks(self.layered.model)
        for stack in every:
            self._enter(stack, before)
            beyond = stack.first + len(stack.layers)
            if restore and first > stack.first:
                self.hidden = restore(min(first, beyond) - 1)
            for number in range(max(first, stack.first), beyond):
                name = f"{stack.prefix}{number - stack.first}."
                self.layered.load(lambda parameter, name=name: parameter.startswith(name))
                layer = stack.layers[number - stack.first]
                with stack.hand_on_states(layer, self.states):
                    yield number, layer
                self.layered.unload(layer)
            if stack is not every[-1]:
                before = [_final(stack, *pair) for pair in zip(self.inputs, self.hidden, strict=True)]

    @torch.no_grad()
    def _enter(self, stack: Stack, before: list[Any]) -> None:
        """Run the dry pass of a stack."""
        prefixes = tuple(other.prefix for other in layer_stacks(self.layered.model))
        self.layered.load(lambda name: stack.is_needed_before_layers(name) or not name.startswith(prefixes))
        self.layered.model.tie_weights()
        self.inputs = [stack.stack_inputs(batch, states) for batch, states in zip(self.batches, before, strict=True)]
        if not any(batch["attention_mask"].any() for batch in self.inputs):
            raise UserError(
                f"{type(stack.module).__name__} reads no token, because every sequence ends before its half begins. "
                "Lower `length`, or set `pack: true`"
            )
        dry = [_dry_pass(stack, batch) for batch in self.inputs]
        self.hidden, self.arguments = [hidden for hidden, _ in dry], [arguments for _, arguments in dry]
        self.states = deque([None] * len(self.batches))
        found, expected = (_tensors(calls) for calls in (_dry_pass(stack, self.inputs[0], 1)[1], self.arguments[0]))
        if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
            raise UserError(
                f"{type(stack.module).__name__}: a layer reads more from earlier layers than their hidden states. The "
                "run layer by layer does not keep that, so this architecture is not supported"
            )


def _dry_pass(stack: Stack, batch: Batch, shift: float = 0) -> tuple[Tensor, dict[int, tuple[Any, Any]]]:
    """Return the first layer's input and {number: other arguments} of all layers.

    Layers return their input plus `shift`: if other arguments change with it, they depend on the layers' outputs.
    """
    first: list[Tensor] = []
    arguments: dict[int, tuple[Any, Any]] = {}

    def recorder(number: int) -> Callable[..., Any]:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if number == stack.first:
                first.append(hidden)
            arguments[number] = (args, kwargs)
            return stack.as_layer_output(hidden + shift if shift else hidden, stack.state_for_next_layer(hidden, args))

        return forward

    for number, layer in enumerate(stack.layers, stack.first):
        layer.forward = recorder(number)
    try:
        stack.module(**batch, use_cache=False)
    finally:
        for layer in stack.layers:
            del layer.forward
    return first[0], arguments


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: Tensor, arguments: tuple[Any, Any]) -> Tensor:
    """Return a layer's output hidden states for one batch."""
    args, kwargs = arguments
    output = layer(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def final_hidden(layered: LayeredModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Return the head's input [B, L', H]: the last layer's output after the stock decoder's final steps."""
    stack = layer_stacks(layered.model)[-1]
    return _final(stack, stack.stack_inputs(batch), hidden)


@torch.no_grad()
def _final(stack: Stack, inputs: Batch, hidden: Tensor) -> Tensor:
    for layer in stack.layers:
        layer.forward = lambda *args, **kwargs: stack.as_layer_output(hidden)
    try:
        return stack.module(**inputs, use_cache=False).last_hidden_state
    finally:
        for layer in stack.layers:
            del layer.forward
