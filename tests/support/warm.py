"""A `python` whose stages, `-m snakemake`, `-m dvc` and `-m mergemoe.cli` run in forks of one process (worker.py).

A job of the tiny workflow computes for a tenth of a second and imports for three to nine. That what runs gives the same
bytes as a fresh interpreter is a test (test_worker.py).
"""

import functools

from stages.support import worker

LIBRARIES = (
    *worker.LIBRARIES,
    "lm_eval",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "snakemake.cli",
    "dvc.cli.parser",
    "dvc.repo",
    "pydantic",
    "jinja2",
    "plotly.graph_objects",
)


@functools.cache
def python() -> str:
    """Start the worker of this process and return the path of its `python`."""
    folder = worker.start(LIBRARIES, ("stages.", "snakemake", "dvc", "mergemoe.cli"))
    engine = folder / "snakemake"  # which the commands of dvc.yaml call
    engine.write_text(f'#!/bin/sh\nexec {folder / "python"} -m snakemake "$@"\n')
    engine.chmod(0o700)
    return str(folder / "python")
