"""What the stages of a whole model hold and compute, by its headers: job_resources.py asks for it before they run.

A model is streamed, a decoder layer at a time, or loaded whole in the run's dtype; meanwhile the pages of its files are
mapped. Here as in layer_resources.py, tensors are added up in bytes as the code has them at its worst moment.
"""

import functools
import math
import re
from pathlib import Path
from typing import NamedTuple

from mergemoe.checkpoints import cost, expert_headers, model_folder
from mergemoe.workflow.config.base import Text
from mergemoe.workflow.config.evaluate import Evaluate, Task
from mergemoe.workflow.config.params import Capture
from mergemoe.workflow.planning.layer_resources import ROWS, Peak

EXAMPLES, EXAMPLE = 1000, 128  # of a task of lm-eval; as many tokens for each example in its prompt
SHARD = 4 << 30  # bytes, of assemble


class Stored(NamedTuple):
    """What the headers of a checkpoint say, those of its plain copy where it is quantized.

    layer, outside: (numbers, bytes) of the largest decoder layer, and of what is in none; shard: bytes of the largest
    file; widest: the longest side of a layer's matrices; routed: expert_headers.sizes; flops: per token.
    """

    numbers: int
    bytes: int
    layer: tuple[int, int]
    outside: tuple[int, int]
    depth: int
    shard: int
    widest: int
    routed: dict[int, dict[str, int]]
    hidden: int
    top_k: int
    vocabulary: int
    flops: float

    @property
    def subject(self) -> "Subject":
        """Return what it is as a checkpoint that is scored."""
        return Subject(self.numbers, self.bytes, max(layer["parameters"] for layer in self.routed.values()))

    def states(self, text: Text, dtype: str) -> int:
        """Return the bytes of the hidden states of a text."""
        return tokens_of(text) * self.hidden * size_of(dtype)

    def batch(self, tokens: int, dtype: str) -> int:
        """Return the bytes of a batch on its way through a decoder layer."""
        return tokens * size_of(dtype) * (8 * self.hidden + 4 * self.widest)


class Subject(NamedTuple):
    """A checkpoint that is scored; routed: the most numbers that the experts of one of its layers have."""

    numbers: float
    bytes: float
    routed: float


def size_of(dtype: str) -> int:
    """Return the bytes of a number."""
    return 4 if dtype == "float32" else 2


def tokens_of(text: Text) -> int:
    """Return the tokens of a text."""
    return text.samples * text.length


@functools.cache
def stored(folder: Path) -> Stored:
    """Return what the headers of a checkpoint say."""
    config, headers = model_folder.read_config(folder), expert_headers.headers(folder)
    files, parts, widest = dict[str, int](), dict[str, list[int]](), 0
    for key, header in headers.items():
        layer, shape = re.match(r".+?\.\d+\.", key), header["shape"]
        files[header["file"]] = files.get(header["file"], 0) + header["bytes"]
        part = parts.setdefault(layer[0] if layer else "", [0, 0])
        part[0], part[1] = part[0] + math.prod(shape), part[1] + header["bytes"]
        widest = max(widest, *shape[-2:]) if layer and shape else widest
    outside = parts.pop("", [0, 0])
    largest = max(parts.values())
    return Stored(
        numbers=outside[0] + sum(numbers for numbers, _ in parts.values()),
        bytes=sum(files.values()),
        layer=(largest[0], largest[1]),
        outside=(outside[0], outside[1]),
        depth=len(parts),
        shard=max(files.values()),
        widest=widest,
        routed=expert_headers.sizes(headers, config),
        hidden=expert_headers.stated(config, "hidden_size")[0],
        top_k=expert_headers.top_k(config) or 1,
        vocabulary={**config, **(config.get("text_config") or {})}["vocab_size"],
        flops=cost.count(folder, headers)["flops_per_token"],
    )


def convert(model: Stored, dequantize: bool) -> Peak:
    """Return what a plain copy needs: a layer as it was, as it becomes, and as it is saved; or all of it, mapped."""
    layer = max(model.layer[1], model.outside[1])
    return Peak(0, 3 * layer if dequantize else model.bytes + min(model.bytes, SHARD), model.bytes)


def streamed(model: Stored, text: Text, how: Capture | Evaluate) -> Peak:
    """Return what a pass needs: one layer, stored and loaded, embeddings, and all hidden states twice."""
    tokens, size, states = tokens_of(text), size_of(how.dtype), model.states(text, how.dtype)
    batch = model.batch(max(text.length, min(tokens, how.batch_tokens)), how.dtype)
    masks = 0 if text.pack else tokens * text.length  # a byte for each pair of tokens, of all batches
    rows = sum(size * (model.hidden + layer["experts"] + model.top_k) for layer in model.routed.values())
    rows += len(model.routed) * (2 * model.top_k + 4)
    tensors = size * (model.outside[0] + model.layer[0]) + 2 * states + masks + batch
    written = 2 * tokens * rows + 3 * states  # in scratch/ and in results/.tmp; behind three layers
    return Peak(tensors, max(0, model.layer[1] - batch), written, tokens * model.flops)


def fidelity(model: Stored, subject: Subject, how: Evaluate, full: bool) -> Peak:
    """Return what fidelity needs; `full`: whether its subject is the full model itself, which is not compared."""
    text, tokens, states = how.heldout, tokens_of(how.heldout), model.states(how.heldout, how.dtype)
    logits = text.length * model.vocabulary
    if full:
        return _loaded(subject, how.dtype, states + 16 * logits, 2 * tokens * model.hidden * model.vocabulary)
    layer = max(8 * one["parameters"] + one["bytes"] for one in model.routed.values())  # the full one's, and its own
    batch = 2 * states + model.batch(max(text.length, min(tokens, how.batch_tokens)), how.dtype)
    check = 2 * min(tokens, ROWS) * model.hidden * size_of(how.dtype)
    work = 2 * states + max(batch, 32 * logits, layer + check)
    return _loaded(subject, how.dtype, work, 3 * tokens * model.flops)


def generate(model: Stored, subject: Subject, how: Evaluate, full: bool) -> Peak:
    """Return what generation needs: the full model, which judges, with the keys and values of a batch.

    Of another subject as much again stays as it and the loading of the full one take, as measured at the width of
    Qwen1.5-MoE-A2.7B (`python benchmarks/needs.py --make`): `del` gives it back too late.
    """
    assert how.generation is not None
    length = how.generation.prompt_tokens + how.generation.new_tokens
    tokens = length * min(how.generation.prompts, max(1, how.batch_tokens // length))
    cache = 3 * tokens * size_of(how.dtype) * model.depth * model.hidden
    work = cache + model.batch(tokens, how.dtype) + 32 * length * model.vocabulary
    before = 0 if full else size_of(how.dtype) * (subject.numbers + 2 / 3 * model.subject.routed)
    peak = _loaded(model.subject, how.dtype, work, 2 * how.generation.prompts * length * model.flops)
    return peak._replace(tensors=peak.tensors + before)


def evaluate(model: Stored, subject: Subject, how: Evaluate, task: Task) -> Peak:
    """Return what a task of lm-eval needs: the model, and logits of a batch, in its dtype, and twice in float32."""
    length = EXAMPLE * (1 + (task.fewshot or 0))
    tokens = task.batch_size * length
    work = 12 * tokens * model.vocabulary + model.batch(tokens, how.dtype)
    return _loaded(subject, how.dtype, work, EXAMPLES * length * model.flops)


def _loaded(subject: Subject, dtype: str, work: float, flops: float) -> Peak:
    """Return what a stage needs that loads a checkpoint and then works with it.

    While it is loaded, all of its files are mapped, and the gates and ups of a layer are held once more.
    """
    loading = subject.bytes + 2 / 3 * subject.routed * size_of(dtype)
    return Peak(subject.numbers * size_of(dtype) + work, max(0, loading - work), 0, flops)
