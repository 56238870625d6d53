"""The fitted or the held-out tokens of a layer with their targets, where any row can be read at once.

A capture is compressed in chunks of rows, and a step of the descent draws rows from everywhere. So its rows are copied
once, into files that have no name (the system deletes them when the job ends, however it ends) and that are mapped, so
the system keeps in memory what fits. Nothing is read from an earlier job.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import torch
from torch import Tensor

from mergemoe.errors import UserError
from mergemoe.moe.expert_forward import routed_output
from mergemoe.moe.problem import Problem
from mergemoe.moe.tokens import Tokens
from mergemoe.moe.typed_torch import ints, ranks

ROWS = 4096  # of a chunk, when all tokens are read in order


class Batch(NamedTuple):
    """Some tokens, and the layer's original routed output y [n, H]."""

    tokens: Tokens
    target: Tensor


class KeptTokens:
    """Tokens of one kind.

    energy: the mean of ||y||^2 over them. sequence [n]: the place of each one's sequence among theirs.
    """

    def __init__(self, problem: Problem, heldout: bool, folder: Path | None, targets: str):
        """Copy the tokens, and compute their targets.

        Args:
            problem: the layer.
            heldout: which tokens.
            folder: where the files without a name lie; None keeps the rows in memory.
            targets: kept, or recomputed whenever they are needed, which halves the disk.

        Raises:
            OSError: if the disk is too small, before anything is computed.
            UserError: if outputs are not finite.
        """
        self.problem, self.count, self.energy = problem, problem.reader.count(heldout), 0.0
        self.hidden = self.index = self.weight = self.target = torch.empty(0)
        start = 0
        for tokens in problem.chunks(heldout):
            if not start:
                self.hidden, self.index, self.weight = (
                    _rows(self.count, part, folder) for part in (tokens.hidden, tokens.index, tokens.weight)
                )
                self.target = _rows(self.count if targets == "kept" else 0, tokens.hidden, folder)
            rows = slice(start, start := start + len(tokens.hidden))
            y = self._compute(tokens)
            self.energy += float(y.double().square().sum()) / self.count
            self.hidden[rows], self.index[rows], self.weight[rows] = tokens.hidden, tokens.index, tokens.weight
            if targets == "kept":
                self.target[rows] = y
        if not math.isfinite(self.energy):
            raise UserError(
                f"the layer's output has a mean square of {self.energy}: captured activations or experts hold values "
                "that are NaN, infinite or too large for float32. A refine cannot fit such a layer; leave it out by "
                "`layers` of `cluster`, or run without `refine`"
            )
        held = problem.reader.held
        self.sequence = ranks(problem.reader.read("sequence", 0, len(held))[held == heldout])

    def _compute(self, tokens: Tokens) -> Tensor:
        return routed_output(tokens.hidden, tokens.index, tokens.weight, self.problem.experts, self.problem.act)

    def read(self, rows: Tensor) -> Batch:
        """Return some rows [n], on the device of the experts."""
        device = self.problem.experts.up.device
        hidden, index, weight = (part[rows].to(device) for part in (self.hidden, self.index, self.weight))
        tokens = Tokens(hidden, index, weight, logits=hidden.new_empty(len(rows), 0))
        return Batch(tokens, self.target[rows].to(device) if len(self.target) else self._compute(tokens))

    def in_order(self) -> Iterator[Batch]:
        """Yield all tokens in their order."""
        return self._ahead(iter(torch.split(torch.arange(self.count), ROWS)))

    def drawn(self, batch: int, seed: int, step: int) -> Iterator[Batch]:
        """Yield batches without end, from a step on; each pass over the tokens has an order of its own."""
        return self._ahead(batch_rows(self.count, batch, seed, step))

    @torch.no_grad()
    def errors(self, approximation: Callable[[Tokens], Tensor]) -> Tensor:
        """Return ||y' - y||^2 / ||y||^2 by sequence, [S] in float64: each one's part of the error over all tokens.

        y' [n, H] is the approximation's output. The parts are NaN if y is 0 everywhere.
        """
        squared = [approximation(batch.tokens).sub(batch.target).square().sum(1).cpu() for batch in self.in_order()]
        parts = torch.zeros(1 + max(ints(self.sequence)), dtype=torch.float64)
        return parts.index_add_(0, self.sequence, torch.cat(squared).double()) / (self.count * self.energy)

    def error(self, approximation: Callable[[Tokens], Tensor]) -> float | None:
        """Return the error over all tokens; None if y is 0 everywhere."""
        return float(self.errors(approximation).sum()) if self.energy else None

    def _ahead(self, wanted: Iterator[Tensor]) -> Iterator[Batch]:
        """Yield the batches of these rows; the next one is read while the caller computes."""
        with ThreadPoolExecutor(1) as pool:
            rows = next(wanted, None)
            coming = None if rows is None else pool.submit(self.read, rows)
            while coming:
                ready, rows = coming.result(), next(wanted, None)
                coming = None if rows is None else pool.submit(self.read, rows)
                yield ready


def batch_rows(count: int, batch: int, seed: int, step: int) -> Iterator[Tensor]:
    """Yield the rows of the batches of a descent from `step` on: each pass is a permutation, and its rest is left out.

    A batch's rows stand in the order of the file.
    """
    batch = min(batch, count)
    in_pass = count // batch
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // in_pass)
        order = torch.randperm(count, generator=generator)
        for place in range(step % in_pass, in_pass):
            yield order[place * batch : (place + 1) * batch].sort().values
        step += in_pass - step % in_pass


def _rows(count: int, like: Tensor, folder: Path | None) -> Tensor:
    """Return `count` empty rows of the shape and dtype of `like` [n, ...]."""
    shape = (count, *like.shape[1:])
    if folder is None or not count:
        return torch.empty(shape, dtype=like.dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file or a link to nothing lies there
        error.add_note(f"while {folder} was written")
        raise
    size = like[0].numel() * count
    with NamedTemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size * like.element_size())
        except OSError as error:  # a disk that is full is said before anything is computed
            raise OSError(error.errno, error.strerror, f"{folder}, {size * like.element_size():,} bytes") from None
        return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(shape)
