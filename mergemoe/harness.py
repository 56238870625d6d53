"""Scores from lm-eval, the real one, on a model in memory."""

from collections.abc import Mapping
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mergemoe.errors import UserError


def score(
    model: Any, tokenizer: Any, task: str, *, include: str | None, fewshot: int, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Run one task of lm-eval.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        task: a name that lm-eval knows, or one defined in `include`.
        include: a folder of task files; lm-eval's own tasks are then left aside.
        fewshot: examples in the prompt.
        limit: examples per (sub)task; None is all.
        batch_size: sequences of one forward pass.

    Returns:
        version, samples, scores (with their standard errors), and the same per subtask in `parts`.

    Raises:
        UserError: where lm-eval does not know the task.
    """
    manager = TaskManager(include_path=include, include_defaults=include is None)
    if task not in manager.all_tasks:
        where = f"in {include}" if include else f"to lm-eval {lm_eval.__version__}"
        raise UserError(f"evaluate.tasks.{task}: the name is not known {where}")
    evaluate: Any = lm_eval.simple_evaluate  # decorators hide the signatures from type checkers
    wrap: Any = HFLM
    results = evaluate(
        wrap(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)),
        tasks=[task],
        num_fewshot=fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    counts = {name: n["effective"] for name, n in results["n-samples"].items()}
    parts = {
        name: {**_numbers(values), "samples": counts[name]}
        for name, values in results["results"].items()
        if name in counts
    }
    return {
        "version": results["versions"].get(task, next(iter(results["versions"].values()), None)),
        "samples": sum(counts.values()),
        "scores": _numbers(results["groups"][task] if task in results.get("groups", {}) else results["results"][task]),
        "parts": parts if set(parts) != {task} else {},
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return {metric or metric_stderr: number}; lm-eval writes `metric,filter`."""
    named = {key.replace(",none", "").replace(",", "_"): value for key, value in values.items()}
    return {
        key: float(value)
        for key, value in sorted(named.items())
        if isinstance(value, int | float) and key not in {"sample_len", "sample_count"}
    }
