"""Score a model in memory with lm-eval."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lm_eval
import torch
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError
from lm_eval.models.huggingface import HFLM

from mergemoe.artifacts.writing import refused_write
from mergemoe.calibration.vocabulary import check_rows
from mergemoe.errors import UserError, in_short
from mergemoe.evaluation.lm_eval_tasks import LmEvalTask

# Exceptions of lm-eval and `datasets` if rows are not JSON, cut off, missing, without a field, or of another type, or
# if a task file asks for what there is not.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    DatasetGenerationError,
    EOFError,
    LookupError,
    NotImplementedError,  # of lm-eval, for what a task file asks for
    StopIteration,
    TemplateError,
    TypeError,
    ValueError,
)
HELP = {
    "data_files": "They must be JSON lines with the field names of the data set that the stock task reads",
    "include": "The task file's keys must be lm-eval's, and its templates must name fields that the rows have",
}


def score_task(
    model: Any, tokenizer: Any, task: LmEvalTask, *, fewshot: int | None, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Run one task of lm-eval.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        task: the task to run.
        fewshot: the number of examples in the prompt; None is the task's own number.
        limit: the number of examples per (sub)task; None is all.
        batch_size: the number of sequences in a forward pass.

    Returns:
        version, samples, shots (examples in the prompt), note, scores (with their standard errors; of a tag, the means
        of its tasks), and the scores of each subtask in `parts`.

    Raises:
        UserError: the task's data cannot be loaded, or memory is too small.
    """
    try:
        results = _run(model, tokenizer, task, fewshot, limit, batch_size)
    except (RuntimeError, MemoryError) as error:  # torch has a class for a GPU out of memory, but none for a CPU
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
            raise UserError(
                f"evaluate.tasks.{task.name}: out of memory with batch_size {batch_size} ({error}). Lower `batch_size`"
            ) from error
        if task.local and isinstance(error, UNREADABLE):
            raise _unreadable(task, error) from error
        raise
    except (ConnectionError, FileNotFoundError) as error:  # `datasets` raises either if it is offline
        raise UserError(
            f"evaluate.tasks.{task.name}: its data cannot be loaded ({error}). If this machine reaches the hub, export "
            "HF_HUB_OFFLINE=0. If not, set `data_files` for the task (docs/tasks.md)"
        ) from error
    except UserError as error:  # of our own reader of rows, or of a token
        raise UserError(f"evaluate.tasks.{task.name}{f'.{task.local}' if task.local else ''}: {error}") from None
    except UNREADABLE as error:
        if not task.local:
            raise
        raise _unreadable(task, error) from error
    counts = {name: n["effective"] for name, n in results["n-samples"].items()}
    parts = {
        name: {**_numbers(values), "samples": counts[name]}
        for name, values in results["results"].items()
        if name in counts
    }
    whole = results["groups"] if task.name in results.get("groups", {}) else results["results"]
    scores = _numbers(whole.get(task.name, {})) or _means(parts)
    return {
        "version": results["versions"].get(task.name, next(iter(results["versions"].values()), None)),
        "samples": sum(counts.values()),
        "shots": sorted(set(results["n-shot"].values())),
        "note": task.note,
        "scores": scores,
        "parts": parts if set(parts) != {task.name} else {},
    }


def _unreadable(task: LmEvalTask, error: Exception) -> UserError:
    cause = error.__cause__ or error
    cause.add_note(f"while `datasets` copied the rows into {tempfile.gettempdir()}")
    if refused := refused_write(cause):
        return refused
    key = task.local or "include"
    return UserError(
        f"evaluate.tasks.{task.name}.{key}: lm-eval cannot read the rows ({in_short(cause)}). "
        f"{HELP[key]} (docs/tasks.md)"
    )


def _run(model: Any, tokenizer: Any, task: LmEvalTask, fewshot: int | None, limit: int | None, batch_size: int) -> Any:
    evaluate: Any = lm_eval.simple_evaluate  # decorators hide the signatures from type checkers
    wrap: Any = HFLM
    # Otherwise lm-eval draws the resamples of a standard error in one process per core, and each imports lm-eval. The
    # numbers are the same.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with _checked_tokens(model, tokenizer):
        return evaluate(
            wrap(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)),
            tasks=[task.spec],
            num_fewshot=fewshot,
            limit=limit,
            task_manager=task.manager,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=0,  # the seeds of lm-eval's command line; the last one draws the examples of a prompt
            numpy_random_seed=1234,
            torch_random_seed=1234,
            fewshot_random_seed=1234,
        )


@contextmanager
def _checked_tokens(model: Any, tokenizer: Any) -> Iterator[None]:
    """Refuse tokens for which the embedding has no row: on a GPU they end the process without a reason."""
    embedding = model.get_input_embeddings()

    def check(_: Any, given: tuple[Any, ...]) -> None:
        check_rows(tokenizer, int(given[0].max()), len(embedding.weight))

    hook = embedding.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _means(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the tasks of a tag, or of a group that does not say how to aggregate."""
    metrics = {metric for part in parts.values() for metric in part if metric != "samples" and "_stderr" not in metric}
    held = {metric: [part[metric] for part in parts.values() if metric in part] for metric in sorted(metrics)}
    return {metric: sum(values) / len(values) for metric, values in held.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return {metric or metric_stderr: number}; lm-eval writes `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if isinstance(value, int | float) and metric not in {"sample_len", "sample_count"}:
            name = metric.removesuffix("_stderr") + (f"_{kind}" if kind not in ("", "none") else "")
            found[f"{name}_stderr" if metric.endswith("_stderr") else name] = float(value)
    return dict(sorted(found.items()))
