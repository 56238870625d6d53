"""Memory, GPU memory, disk and work of a job before it runs: from headers, config.json and params.yaml alone.

A job holds the base of its stage (Python and its imports), and k times the bytes of what it works on: a file, a decoder
layer, the experts of a layer, a model, tokens. Each k was measured on a layer of the width of Qwen1.5-MoE-A2.7B
(`python benchmarks/needs.py`, docs/log.md).

Budgets are assumed to be spent evenly over layers. Nothing here imports torch or transformers, because the Snakefile
asks in every process that parses it.
"""

import functools
import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mergemoe.artifacts.stage import Stage
from mergemoe.artifacts.stages import STAGES
from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.base import Text
from mergemoe.workflow.config.evaluate import Evaluate
from mergemoe.workflow.config.params import Capture, Params
from mergemoe.workflow.planning import plan
from mergemoe.workflow.planning.model_counts import model_counts
from mergemoe.workflow.planning.resources.layer_resources import Held, Layer, halved, solve_held, unions_held
from mergemoe.workflow.planning.resources.quantize_resources import quantize_held
from mergemoe.workflow.planning.resources.refine_resources import refine_held

MARGIN = 1.2  # for other machines, allocators and versions
GPU_ALLOWANCE = 2000  # MB of context, kernels and workspaces: an assumption, measured on no GPU
CUDA_BUILD = 390  # MB that torch 2.13 for CUDA 13 holds and maps more than the CPU build, without a GPU
SHARD = 4 << 30  # bytes of a file of a checkpoint that is written
TASK_TOKENS = 1000 * 128  # of a task of lm-eval, without examples in its prompts


class Need(NamedTuple):
    """Resources of a job.

    memory: MB (10^6) of the host's memory, the peak resident set of its process.
    gpu: MB of the GPU's memory, if the stage runs on one; 0 if it uses none.
    disk: MB that it has written at its worst moment, results/.tmp and scratch/ included.
    read: MB of a checkpoint that it reads: once to check it, once to use it.
    flops: multiply-adds that it computes, times 2.
    """

    memory: int
    gpu: int
    disk: int
    read: int
    flops: float


def job_need(params: Params, stage: str, names: Mapping[str, str]) -> Need:
    """Return the resources of the job of a stage; `names` are its rule's wildcards."""
    row, job = STAGES[stage], _Job(params, dict(names.items()))  # Snakemake's are a list, whose `in` looks at values
    held: Held = getattr(job, stage.removesuffix("_partial"), lambda: job.unmeasured(row))()
    return Need(
        memory=math.ceil(MARGIN * (row.holds.base + cuda_libraries() + (held.tensors + held.host) / 1e6)),
        gpu=0 if row.device == "cpu" else GPU_ALLOWANCE + math.ceil(MARGIN * held.tensors / 1e6),
        disk=math.ceil(held.disk / 1e6) + 1,  # and its record
        read=math.ceil(2 * job.model.bytes / 1e6) if row.checkpoint == "whole" else 0,
        flops=float(held.flops),
    )


@functools.cache
def cuda_libraries() -> int:
    """Return the MB that torch's libraries take more than those of the CPU build, by the build that is installed."""
    torch = importlib.util.find_spec("torch")  # found, and not imported, which takes seconds
    text = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8") if torch and torch.origin else ""
    return CUDA_BUILD if re.search(r"^cuda\b.*= '", text, re.MULTILINE) else 0


class _Job:
    """A job; the method with the name of its stage returns what it holds."""

    def __init__(self, params: Params, names: Mapping[str, str]):
        self.params, self.names = params, names
        if "model" in names:
            self.model = model_counts(params.model[names["model"]].folder())
            self.routed = max(layer["parameters"] for layer in self.model.routed.values())

    def convert(self) -> Held:
        model = self.model
        one = 3 * max(model.layer_bytes, 2 * model.outside)  # a layer as it was, as it becomes, and as it is saved
        copied = self.params.model[self.names["model"]].dequantize
        return Held(host=one if copied else model.bytes + min(model.bytes, SHARD), disk=model.bytes)

    def layout(self) -> Held:
        return Held(host=self.model.largest_file)  # mapped

    def calibrate(self) -> Held:
        text = self.params.calibrate[self.names["calibrate"]]
        source = Path(text.source or "")
        size = source.stat().st_size if source.is_file() else 0
        return Held(host=10 * size + 64 * _tokens(text), disk=6 * _tokens(text))  # tokens as Python's integers

    def capture(self) -> Held:
        return self._layer_by_layer(self.params.calibrate[self.names["calibrate"]], self.params.capture)

    def reference(self) -> Held:
        return self._layer_by_layer(self.params.evaluate.heldout, self.params.evaluate)

    def _layer_by_layer(self, text: Text, how: Capture | Evaluate) -> Held:
        """Return the memory of a forward: a decoder layer, stored and loaded, embeddings, and all hidden states."""
        tokens, size, model = _tokens(text), _size(how.dtype), self.model
        states = tokens * model.hidden * size
        written = 2 * plan.captured_bytes(model, how.dtype, tokens) + 3 * states  # in scratch/ and in results/.tmp
        tensors = size * (model.outside + model.layer) + 2 * states + self._batch(text, how)
        return Held(tensors, model.layer_bytes, written, tokens * model.flops)

    def _batch(self, text: Text, how: Capture | Evaluate) -> int:
        tokens = max(text.length, min(_tokens(text), how.batch_tokens))
        return 20 * tokens * self.model.hidden * _size(how.dtype)

    def profile(self) -> Held:
        layer = self._layer()
        held = max(2 * layer.bytes, layer.bytes + layer.chunk / 3)
        return Held(held, flops=layer.flops * layer.top_k / layer.experts)

    def cluster(self) -> Held:
        layer, chosen = self._layer(), self.params.cluster[self.names["cluster"]]
        if not layer.inside:
            return Held(2 * layer.bytes)
        held = 4 * layer.numbers * (2.4 if chosen.by == "weights" else 1.6)  # by weights, some are held in float64, too
        if chosen.by == "selection":
            unions = unions_held(layer, chosen.search == "quick")
            return unions._replace(tensors=held + unions.tensors)
        return Held(held, flops=layer.flops)

    def curve(self) -> Held:
        layer, chosen = self._layer(), self.params.cluster[self.names["cluster"]]
        n, most, multiple = layer.experts, chosen.max_size, chosen.width_multiple
        sizes = layer_sizes.measured_sizes(n, layer.width, chosen.share, layer.kept_width, multiple, most)
        features = {"features": "selected" if chosen.by == "selection" else "usage"}
        sized = [layer._replace(kept=m, kept_width=width, largest=halved(layer.experts / m)) for m, width in sizes]
        held = [self.cluster(), *(solve_held(one, "routed", features) for one in sized)]
        return Held(max(one.tensors for one in held), flops=sum(one.flops for one in held))

    def solve(self) -> Held:
        layer, chosen = self._layer(), self.params.solve[self.names["solve"]]
        return solve_held(layer, chosen.method, chosen.model_dump()) if layer.inside else Held(2 * layer.bytes)

    def refine(self) -> Held:
        layer, chosen = self._layer(), self.params.refine[self.names["refine"]]
        return refine_held(layer, chosen.model_dump() | ({} if layer.inside else {"steps": 0}))

    def quantize(self) -> Held:
        return quantize_held(self._layer(), self.params.quantize[self.names["quantize"]].model_dump())

    def assemble(self) -> Held:
        size = self._subject()["bytes"]
        return Held(host=size, disk=size)  # written tensors are mapped: solved layers, and the original's other tensors

    def fidelity(self) -> Held:
        how, model, text = self.params.evaluate, self.model, self.params.evaluate.heldout
        logits, states = 32 * text.length * model.vocabulary, 2 * _tokens(text) * model.hidden * _size(how.dtype)
        if self.names["subject"] == "full":
            return self._loaded(states + logits, 2 * _tokens(text) * model.hidden * model.vocabulary)
        layer = 2.5 * 4 * self.routed + self._batch(text, how)  # the full one's, and its own
        return self._loaded(states + max(logits, layer), 3 * _tokens(text) * model.flops)

    def generate(self) -> Held:
        """Return the memory of generation: the subject, then the full model that scores it, with keys and values."""
        how, model = self.params.evaluate, self.model
        assert how.generation is not None
        length, size = how.generation.prompt_tokens + how.generation.new_tokens, _size(how.dtype)
        tokens = length * min(how.generation.prompts, max(1, how.batch_tokens // length))
        work = tokens * size * model.hidden * (3 * model.depth + 20) + 32 * length * model.vocabulary
        held = self._loaded(work, 2 * how.generation.prompts * length * model.flops)
        if self.names["subject"] == "full":
            return held
        loading = model.bytes + 4 / 3 * size * self.routed  # the subject's memory comes back too late
        return held._replace(tensors=held.tensors + size * model.parameters, host=max(0, loading - work))

    def evaluate(self) -> Held:
        how, shots = self.params.evaluate, 1 + (self.params.evaluate.tasks[self.names["task"]].fewshot or 0)
        tokens = how.tasks[self.names["task"]].batch_size * 128 * shots
        work = tokens * (12 * self.model.vocabulary + 20 * self.model.hidden * _size(how.dtype))
        return self._loaded(work, TASK_TOKENS * shots * self.model.flops)

    def _loaded(self, work: float, flops: float) -> Held:
        """Return the memory of a loaded checkpoint and of the work with it.

        Before the work, its files are mapped, and a layer's gates and ups are there once more.
        """
        subject, size = self._subject(), _size(self.params.evaluate.dtype)
        twice = 2 / 3 * size * self.routed * subject["parameters"] / self.model.parameters
        return Held(size * subject["parameters"] + work, max(0, subject["bytes"] + twice - work), flops=flops)

    def report(self) -> Held:
        """Return the memory of a page: the profiles' numbers, N by N per layer, as text and as Python's objects."""
        profiled = {self.params.model[model].folder() for model, *_ in self.params.all_runs()}
        layers = [layer["experts"] for folder in profiled for layer in model_counts(folder).routed.values()]
        return Held(host=sum(100 * n**2 for n in layers), disk=20e6)

    def unmeasured(self, stage: Stage) -> Held:
        """Return the memory of a stage that no method here estimates: four times the checkpoint bytes that it reads."""
        layer = self.names.get("layer")
        read = self.model.routed[int(layer)]["bytes"] if layer else self.model.bytes
        return Held() if stage.checkpoint == "none" else Held(4 * read)

    def _layer(self) -> Layer:
        """Return the job's layer, and what becomes of it; nothing, before a grouping and outside its range."""
        number = int(self.names["layer"])
        sizes, chosen = self.model.routed[number], self.params.cluster.get(self.names.get("cluster", ""))
        n, inside = sizes["experts"], chosen is not None and bool(chosen.within([number]))
        kept, width, largest = n, sizes["width"], 1
        if chosen and inside:
            kept = layer_sizes.kept_experts(chosen.share or (None if chosen.by == "none" else chosen.experts), n)
            width = self.params.kept_width(self.names["cluster"], self._solve(), width)
            most = halved(n / kept) * (1 if chosen.by == "selection" else 2)  # other groupings are less even
            largest = 1 if chosen.by in ("saliency", "none") else min(most, chosen.max_size or n)
        return Layer(
            experts=n,
            kept=kept,
            width=sizes["width"],
            kept_width=width,
            largest=largest,
            numbers=sizes["parameters"],
            bytes=sizes["bytes"],
            hidden=self.model.hidden,
            top_k=self.model.top_k,
            tokens=_tokens(self.params.calibrate[self.names["calibrate"]]),
            inside=inside,
        )

    def _solve(self) -> str | None:
        """Return the choice of `solve` of the job's run; None before one is made."""
        return self.names.get("solve", self.names.get("fitted", "").partition("+")[0]) or None

    def _subject(self) -> dict[str, int]:
        """Return the size of the checkpoint that is scored, or assembled."""
        subject = self.names.get("subject")
        if subject == "full":
            return {"parameters": self.model.parameters, "bytes": self.model.bytes}
        named = subject or "/".join(self.names[part] for part in ("calibrate", "cluster", "solution"))
        return plan.run_size(self.params, self.params.run_named(self.names["model"], named))


def _tokens(text: Text) -> int:
    return text.samples * text.length


def _size(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
