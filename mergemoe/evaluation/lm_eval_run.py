"""Scores from lm-eval, the real one, on a model in memory."""

import json
import os
from collections.abc import Mapping
from typing import Any

import lm_eval
import torch
from datasets.exceptions import DatasetGenerationError
from jinja2 import UndefinedError
from lm_eval.models.huggingface import HFLM

from mergemoe.errors import UserError
from mergemoe.evaluation.lm_eval_tasks import LmEvalTask

# What lm-eval and `datasets` raise over rows that are no JSON, cut off, none at all, or without a field.
UNREADABLE = (DatasetGenerationError, EOFError, LookupError, StopIteration, UndefinedError, json.JSONDecodeError)


def score_task(
    model: Any, tokenizer: Any, task: LmEvalTask, *, fewshot: int | None, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Run one task of lm-eval.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        task: what lm-eval is asked to run.
        fewshot: examples in the prompt; None is the task's own number.
        limit: examples per (sub)task; None is all.
        batch_size: sequences of one forward pass.

    Returns:
        version, samples, shots (examples in the prompt), note, scores (with their standard errors), and the same per
        subtask in `parts`.

    Raises:
        UserError: where the task's data cannot be had, or memory does not suffice.
    """
    try:
        results = _run(model, tokenizer, task, fewshot, limit, batch_size)
    except (RuntimeError, MemoryError) as error:  # a GPU's has a class of its own, a CPU's in torch has not
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"evaluate.tasks.{task.name}: out of memory with batch_size {batch_size} ({error}): lower `batch_size`"
        ) from error
    except (ConnectionError, FileNotFoundError) as error:  # `datasets` says both of a hub that it may not ask
        raise UserError(
            f"evaluate.tasks.{task.name}: its data cannot be had ({error}). Where the hub can be reached, export "
            "HF_HUB_OFFLINE=0; where not, give the task `data_files` (docs/tasks.md)"
        ) from error
    except UNREADABLE as error:
        if not task.local:
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"evaluate.tasks.{task.name}.data_files: lm-eval stopped at the rows ({type(cause).__name__}: {cause}): "
            "they are JSON lines, with the field names of the data set that the stock task reads (docs/tasks.md)"
        ) from error
    counts = {name: n["effective"] for name, n in results["n-samples"].items()}
    parts = {
        name: {**_numbers(values), "samples": counts[name]}
        for name, values in results["results"].items()
        if name in counts
    }
    whole = results["groups"] if task.name in results.get("groups", {}) else results["results"]
    return {
        "version": results["versions"].get(task.name, next(iter(results["versions"].values()), None)),
        "samples": sum(counts.values()),
        "shots": sorted(set(results["n-shot"].values())),
        "note": task.note,
        "scores": _numbers(whole[task.name]),
        "parts": parts if set(parts) != {task.name} else {},
    }


def _run(model: Any, tokenizer: Any, task: LmEvalTask, fewshot: int | None, limit: int | None, batch_size: int) -> Any:
    evaluate: Any = lm_eval.simple_evaluate  # decorators hide the signatures from type checkers
    wrap: Any = HFLM
    # Else the resamples of a standard error are drawn in as many processes as there are cores, each of which imports
    # lm-eval; the numbers are the same.
    os.environ["DISABLE_MULTIPROC"] = "1"
    return evaluate(
        wrap(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)),
        tasks=[task.spec],
        num_fewshot=fewshot,
        limit=limit,
        task_manager=task.manager,
        bootstrap_iters=1000,
        log_samples=False,
        random_seed=0,  # these are the command line's own: by the last one, examples of a prompt are drawn
        numpy_random_seed=1234,
        torch_random_seed=1234,
        fewshot_random_seed=1234,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return {metric or metric_stderr: number}; lm-eval writes `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if isinstance(value, int | float) and metric not in {"sample_len", "sample_count"}:
            name = metric.removesuffix("_stderr") + (f"_{kind}" if kind not in ("", "none") else "")
            found[f"{name}_stderr" if metric.endswith("_stderr") else name] = float(value)
    return dict(sorted(found.items()))
