"""Run lm-eval's task squad_completion on SQuAD's own rows; its stock data is another set, which only the hub has.

The stock class keeps its prompt limits and its score `contains`: whether the continuation contains the answer. The rows
are built here from `context`, `question` and `answers` of SQuAD v1.1: `text` is the context, a line with the question,
and `Answer:`; `value` is the first answer. So the score does not compare with the score on the stock data (`NOTE`).
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.squad_completion.task import SQUADCompletion

NOTE = "rows built by mergemoe from SQuAD's (docs/tasks.md), not lm-eval's data"


# A task file in an `include` folder would need this Python, too: lm-eval has no metric `contains` that a file can name.
# It would also leave `data_files`, the suites' entries and the note on the score to every user.
class Completion(SQUADCompletion):
    """The stock task with another data source: `dataset_kwargs: {data_files: {validation: FILE}}`."""

    def __init__(self, config: Mapping[str, Any]):
        settings = {"task": config["task"], "dataset_kwargs": config["dataset_kwargs"]}
        ConfigurableTask.__init__(self, config={**settings, "metadata": {"version": self.VERSION}})

    def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        """Read the local file."""
        made = [row(one) for one in _lines(dataset_kwargs["data_files"]["validation"])]
        self.dataset: Any = {"validation": Dataset.from_list(made)}

    def aggregation(self) -> Any:
        """Return lm-eval's mean instead of numpy's: the same number, but lm-eval computes its standard error."""
        return {"contains": mean}


def row(one: Mapping[str, Any]) -> dict[str, str]:
    """Return a row: `text` is the model's prompt, `value` is the answer that the continuation should contain."""
    text = f"{one['context'].strip()}\nQuestion: {one['question'].strip()}\nAnswer:"
    return {"text": text, "value": one["answers"]["text"][0]}


def _lines(path: str) -> Iterator[Any]:
    opened: Any = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
